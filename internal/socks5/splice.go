package socks5

import (
	"context"
	"io"
	"net"
	"sync"
)

func splice(ctx context.Context, a, b net.Conn) error {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	defer a.Close()
	defer b.Close()
	var wg sync.WaitGroup
	cp := func(dst, src net.Conn) {
		io.Copy(dst, src)
		if cw, ok := dst.(interface{ CloseWrite() error }); ok {
			cw.CloseWrite()
		}
	}
	wg.Go(func() { cp(a, b) })
	cp(b, a)
	wg.Wait()
	return nil
}
