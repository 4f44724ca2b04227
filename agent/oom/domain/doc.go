// Package domain says what the kernel leaves open about its OOM kills: whose memory had run out ([Table]), which kills were one
// ([Groups]), and which were not reported ([Audit] and [Table.Missing]). It is pure: it works on readings that its caller takes,
// and on the caller's clock, and belongs to one goroutine.
package domain
