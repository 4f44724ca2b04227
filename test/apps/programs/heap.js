// A server in small: requests make garbage, in waves of load; or it keeps a part of each request.
'use strict';
const leak = process.argv[2] === 'leak';
const begin = Date.now();
const kept = [];
let session = new Map();
let n = 0;

function request(id) {
  const rows = [];
  for (let i = 0; i < 40; i++) rows.push({ id: id * 40 + i, name: 'name ' + Math.random(), tags: [i, i + 1, String(i)] });
  const body = Buffer.alloc(2000, id & 255);
  return { rows, body, text: JSON.stringify(rows) };
}

function tick() {
  // A wave is 25 s: sessions gather for 15 s, are dropped, and new requests keep none.
  const wave = Math.floor((Date.now() - begin) / 1000) % 25;
  for (let i = 0; i < 30; i++) {
    const r = request(n++);
    if (leak) {
      if (i % 3 === 0) kept.push(r);
    } else if (wave < 15) {
      session.set(n, r);
    }
  }
  if (!leak && wave === 15) session = new Map();
  setTimeout(tick, 10);
}
setTimeout(tick, 2000);
