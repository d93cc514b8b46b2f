//go:build !linux

package intercept

// unread is not known here. The proxy runs on Linux; other systems only compile it.
func (c *conn) unread() bool { return false }
