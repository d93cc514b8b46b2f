package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"
)

// serving is the one good answer of the health protocol.
const serving = 1

// grpcStatus are the codes that say more than their number.
var grpcStatus = map[string]string{
	"5": "the server does not know the service", "12": "the server has no health service (grpc.health.v1.Health)", "4": "no answer in time",
}

// grpc asks the gRPC health protocol, without TLS. This one call is written here, on net/http's HTTP/2: the gRPC library would be
// bridge's for nothing else.
func grpc(to end, service string) (what string, check func(context.Context) Outcome) {
	what = "gRPC health of " + to.address
	var request []byte
	if service != "" {
		what += "/" + service
		request = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), service)
	}
	request = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...) // not compressed
	plain := new(http.Protocols)
	plain.SetUnencryptedHTTP2(true)
	return what, func(ctx context.Context) Outcome {
		var cause atomic.Pointer[error] // of there being no connection, which net/http does not always pass on
		transport := &http.Transport{Protocols: plain, DisableCompression: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := to.dial(ctx, network, address)
			if err != nil {
				cause.Store(&err)
				return nil, err
			}
			return causeConn{c, &cause}, nil
		}}
		defer transport.CloseIdleConnections()
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+to.address+"/grpc.health.v1.Health/Check", bytes.NewReader(request))
		if err != nil {
			return Outcome{Why: words(err.Error())}
		}
		r.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {userAgent}}
		resp, err := transport.RoundTrip(r)
		if err != nil {
			if why := cause.Load(); why != nil {
				err = *why
			}
			return failed(ctx, err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
		if err != nil {
			return failed(ctx, err)
		}
		code := resp.Trailer.Get("Grpc-Status")
		if code == "" {
			code = resp.Header.Get("Grpc-Status") // an answer without a message
		}
		switch {
		case resp.StatusCode != http.StatusOK || code == "":
			return Outcome{Result: Failure, Why: fmt.Sprintf("no gRPC answer, status %d", resp.StatusCode)}
		case code != "0":
			why := "gRPC status " + code
			if more := grpcStatus[code]; more != "" {
				why += ": " + more
			}
			return Outcome{Result: Failure, Why: why}
		}
		status, err := healthStatus(body)
		switch {
		case err != nil:
			return Outcome{Result: Failure, Why: words(err.Error())}
		case status != serving:
			return Outcome{Result: Failure, Why: fmt.Sprintf("not serving (%d)", status)}
		}
		return Outcome{Result: Success, Why: "serving"}
	}
}

// causeConn keeps why a Read says that nobody listens.
type causeConn struct {
	net.Conn
	cause *atomic.Pointer[error]
}

func (c causeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.As(err, new(absentError)) {
		c.cause.Store(&err)
	}
	return n, err
}

var errNotHealth = errors.New("the answer is none of the gRPC health protocol")

// healthStatus is the status in the one message that body is.
func healthStatus(body []byte) (status uint64, err error) {
	if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return 0, errNotHealth
	}
	for body = body[5:]; len(body) > 0; {
		field, kind, n := protowire.ConsumeTag(body)
		if n < 0 {
			return 0, errNotHealth
		}
		body = body[n:]
		if field == 1 && kind == protowire.VarintType {
			status, n = protowire.ConsumeVarint(body)
		} else {
			n = protowire.ConsumeFieldValue(field, kind, body)
		}
		if n < 0 {
			return 0, errNotHealth
		}
		body = body[n:]
	}
	return status, nil
}
