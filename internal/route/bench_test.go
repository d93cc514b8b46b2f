package route

import (
	"io"
	"testing"
)

// BenchmarkRequest is one request on a kept connection, through the choice and without.
func BenchmarkRequest(b *testing.B) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\noriginal"
	original := server(b, (&record{name: "original"}).serve)
	direct := connect(b, original)
	routed := connect(b, through(b, &Router{Original: original, Routes: ada(nil)}))
	for name, c := range map[string]io.ReadWriter{"direct": direct, "routed": routed} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, len(ok))
			for b.Loop() {
				io.WriteString(c, plain)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
