// Package ledgertest has a document of the ledger that lies in memory and fails on demand, for tests of what keeps its state in
// one.
package ledgertest

import (
	"bytes"
	"sync"
)

// Aside is where SetAside moves what it sets aside.
const Aside = "set-aside.json"

// Document is a ledger.Document in memory. The zero value is empty. Its fields may be set while nothing else uses it.
type Document struct {
	Data    []byte
	Lost    string // the file that may have had the document, which Load names until something is saved
	Moved   []byte // what SetAside moved
	LoadErr error
	SaveErr error
	Busy    chan struct{} // nil, or until when a save hangs

	mu sync.Mutex // guards all but Busy
}

// Load returns what was saved last.
func (d *Document) Load() (data []byte, lost string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.Data), d.Lost, d.LoadErr
}

// Save keeps data, or returns SaveErr.
func (d *Document) Save(data []byte) error {
	if d.Busy != nil {
		<-d.Busy
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.SaveErr == nil {
		d.Data, d.Lost = append([]byte{}, data...), ""
	}
	return d.SaveErr
}

// SetAside moves the document to Moved.
func (d *Document) SetAside() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.Moved, d.Data = d.Data, nil
	return Aside, nil
}

// Text returns what was saved last, "" when nothing was.
func (d *Document) Text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return string(d.Data)
}

// Fail sets what Load and Save return from now on; nil: they work.
func (d *Document) Fail(load, save error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.LoadErr, d.SaveErr = load, save
}
