package kube

import (
	"regexp"
	"strings"
)

// proposed is a command that a text proposes. Those that ask no cluster are none, and so are words about kubectl.
var proposed = regexp.MustCompile("(^|[^`\\w/-])(?:" +
	`kubectl (?:argo rollouts|get|describe|logs|edit|delete|patch|scale|annotate|label|apply|replace|create|explain|api-resources|auth|config|rollout|set|top|cordon|uncordon)` +
	`|bridge (?:swap|restore|status|diagnose|probes|logs|exec|debug|capture|env|files|forward|connect)` +
	`)\b`)

// Commands is text whose commands have flags, a Client's: those that go to another cluster without. What has them already is left.
func Commands(text, flags string) string {
	if flags == "" {
		return text
	}
	at := proposed.FindAllStringIndex(text, -1)
	var out strings.Builder
	done := 0
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		if !strings.Contains(text[m[1]:end], flags) {
			out.WriteString(text[done:m[1]] + flags)
			done = m[1]
		}
	}
	return out.String() + text[done:]
}
