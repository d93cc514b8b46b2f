package podview

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Formats are the names that Print takes.
var Formats = []string{"dotenv", "shell", "json", "docker"}

// maxDockerLine is the longest line that docker reads from an env file (a bufio.Scanner's default), in bytes.
const maxDockerLine = 64<<10 - 1

// Print writes the variables in a format. left says which it has left out, since the format cannot say them, and why.
func Print(w io.Writer, format string, list []Variable) (left []string, err error) {
	if format == "json" {
		return printJSON(w, list)
	}
	say, ok := map[string]func(Variable) (string, error){"dotenv": dotenv, "shell": shell, "docker": docker}[format]
	if !ok {
		return nil, fmt.Errorf("no format %q: there are %s", format, strings.Join(Formats, ", "))
	}
	var out bytes.Buffer
	for _, v := range list {
		line, err := say(v)
		if err != nil {
			left = append(left, fmt.Sprintf("%s: %v", v.Name, err))
			continue
		}
		out.WriteString(line + "\n")
	}
	_, err = w.Write(out.Bytes())
	return left, err
}

// printJSON prints one object.
func printJSON(w io.Writer, list []Variable) (left []string, err error) {
	object := make(map[string]string, len(list))
	for _, v := range list {
		if !utf8.ValidString(v.Name + v.Value) {
			left = append(left, fmt.Sprintf("%q: it is not UTF-8, which JSON cannot say; use --format shell", v.Name))
			continue
		}
		object[v.Name] = v.Value
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return left, e.Encode(object)
}

// Quote is s as one word of a shell (POSIX).
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// shell is a line, or more, that any POSIX shell reads.
func shell(v Variable) (string, error) {
	if !identifier(v.Name) {
		return "", errors.New("a shell has no variable of that name")
	}
	return "export " + v.Name + "=" + Quote(v.Value), nil
}

// dotenv is what all readers of these files take for the same, a shell among them. Between single quotes nothing is special, but
// readers differ about \\, and about a quote behind a backslash; between double quotes they differ about more.
func dotenv(v Variable) (string, error) {
	switch {
	case !identifier(v.Name):
		return "", errors.New("not all readers of dotenv have variables of that name")
	case strings.Contains(v.Value, "\r"):
		return "", errors.New("it has a carriage return, which readers of dotenv take for the end of a line; use --format json or shell")
	case !strings.Contains(v.Value, "'") && !strings.Contains(v.Value, `\\`) && !strings.HasSuffix(v.Value, `\`):
		return v.Name + "='" + v.Value + "'", nil
	case !strings.ContainsAny(v.Value, "\"\\$`"):
		return v.Name + `="` + v.Value + `"`, nil
	}
	return "", errors.New("it has quotes or backslashes that readers of dotenv do not agree about; use --format json or shell")
}

// docker is a line for docker run --env-file, which takes all behind the first = as it is.
func docker(v Variable) (string, error) {
	line := v.Name + "=" + v.Value
	switch {
	case strings.ContainsAny(line, "\n\r"):
		return "", errors.New("it has more than one line, which docker's env files cannot say; use --format json or shell")
	case strings.ContainsAny(v.Name, " \t") || strings.HasPrefix(v.Name, "#"):
		return "", errors.New("docker's env files cannot say that name")
	case !utf8.ValidString(line):
		return "", errors.New("it is not UTF-8, which docker refuses")
	case len(line) > maxDockerLine:
		return "", fmt.Errorf("docker reads lines of at most %d bytes", maxDockerLine)
	}
	return line, nil
}

// identifier tells whether a shell may have a variable of this name (POSIX.1-2017, 3.235).
func identifier(name string) bool {
	for i, r := range name {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}
