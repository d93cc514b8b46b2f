package hint

import (
	"strings"
	"unicode"
)

// Printable is s without what a terminal would act on.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}
