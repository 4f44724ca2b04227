// Package faults is a proxy in front of a real API server which makes, request by request, what servers and networks do
// wrong: refusals that cannot be provoked, answers that come late or never, connections that are cut before or after the
// request was passed on. It keeps a record of what arrived and of what went through, which no client can embellish.
// It also serves webhooks that refuse evictions.
package faults
