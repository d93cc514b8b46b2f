package diagnose

import (
	"strings"
	"unicode"
)

// nearest is the word that is one typing error or so away from the wanted one; "" when none is.
func nearest(want string, have []string) string {
	best, at := "", 1+len(want)/4 // a quarter of the letters may differ
	for _, h := range have {
		if d := distance(want, h); d <= at && h != want {
			best, at = h, d-1
		}
	}
	return best
}

// misspelt tells whether one typing error in a word of letters made want of have. What counts and tells apart is no such word: db-1 is not
// db-2 misspelt, nor zone-a zone-b.
func misspelt(want, have string) bool {
	const shortest = 4 // letters of such a word
	if distance(want, have) != 1 || digits(want) != digits(have) {
		return false
	}
	words := strings.FieldsFunc(have, func(r rune) bool { return !unicode.IsLetter(r) })
	for i, word := range strings.FieldsFunc(want, func(r rune) bool { return !unicode.IsLetter(r) }) {
		if i >= len(words) || word != words[i] {
			return len(word) >= shortest
		}
	}
	return len(want) >= shortest // they differ between the words
}

func digits(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return r
		}
		return -1
	}, text)
}

// distance is Levenshtein's, with two letters the wrong way round as one error.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost++
			}
			row[j+1] = min(cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
