// Package oom says what the kernel leaves open about its OOM kills: whose memory had run out ([Table]), which kills were one
// ([Groups]), and which of them nobody told of ([Audit] and [Table.Missing]). It works on readings that its caller takes, and on
// the caller's clock: it reads nothing itself, starts nothing, and belongs to one goroutine.
package oom
