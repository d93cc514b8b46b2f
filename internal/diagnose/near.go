package diagnose

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

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
