package tools

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"bridge/internal/hint"
)

func list(_ context.Context, s Streams, f *flag.FlagSet, args []string) error {
	long, byTime, backwards := f.Bool("l", false, ""), f.Bool("t", false, ""), f.Bool("r", false, "")
	ignore(f, "aA1h")
	if err := parse(f, args, 0, -1); err != nil {
		return err
	}
	paths := f.Args()
	if len(paths) == 0 {
		paths = []string{"."}
	}
	var wrong error
	w := tabwriter.NewWriter(s.Out, 0, 0, 1, ' ', 0)
	for _, p := range paths {
		if err := listOne(w, p, *long, len(paths) > 1, order(*byTime, *backwards)); err != nil {
			wrong = errors.Join(wrong, err)
		}
	}
	return errors.Join(w.Flush(), wrong)
}

// order is that of a folder's entries: by their names, or the newest first.
func order(byTime, backwards bool) func(a, b fs.DirEntry) int {
	return func(a, b fs.DirEntry) (c int) {
		if byTime {
			at := func(e fs.DirEntry) (t time.Time) {
				if info, err := e.Info(); err == nil {
					t = info.ModTime()
				}
				return t
			}
			c = at(b).Compare(at(a))
		}
		if c = cmp.Or(c, strings.Compare(a.Name(), b.Name())); backwards {
			c = -c
		}
		return c
	}
}

func listOne(w io.Writer, path string, long, headed bool, by func(a, b fs.DirEntry) int) error {
	info, err := os.Stat(path)
	if err != nil {
		// A link to nowhere is something too.
		if info, err = os.Lstat(path); err != nil {
			return err
		}
	}
	if !info.IsDir() {
		return listEntry(w, filepath.Dir(path), info, path, long)
	}
	if headed {
		_, _ = fmt.Fprintf(w, "%s:\n", hint.Printable(path))
	}
	entries, err := os.ReadDir(path)
	slices.SortStableFunc(entries, by)
	for _, e := range entries {
		info, e2 := e.Info()
		if errors.Is(e2, fs.ErrNotExist) {
			continue // it is gone
		}
		if err = errors.Join(err, e2); e2 == nil {
			err = errors.Join(err, listEntry(w, path, info, e.Name(), long))
		}
	}
	return err
}

func listEntry(w io.Writer, dir string, info fs.FileInfo, name string, long bool) error {
	if !long {
		_, err := fmt.Fprintln(w, hint.Printable(name))
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if to, err := os.Readlink(filepath.Join(dir, info.Name())); err == nil {
			name += " -> " + to
		}
	}
	_, err := fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", info.Mode(), ownerOf(info), info.Size(), info.ModTime().UTC().Format("2006-01-02T15:04:05Z"), hint.Printable(name))
	return err
}

func cat(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error {
	if err := parse(f, args, 0, -1); err != nil {
		return err
	}
	if f.NArg() == 0 {
		_, err := io.Copy(s.Out, s.In)
		return err
	}
	var wrong error
	for _, path := range f.Args() {
		file, err := os.Open(path)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { _ = file.Close() })
			_, err = io.Copy(s.Out, file)
			stop()
			_ = file.Close()
		}
		wrong = errors.Join(wrong, err)
	}
	return wrong
}

// process is one as /proc has it.
type process struct {
	pid, parent int
	state       string
	user        string
	kilobytes   int
	command     string
}

func processes() (list []process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p := process{pid: pid}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			field := strings.Fields(value)
			if len(field) == 0 {
				continue
			}
			switch name {
			case "Name":
				p.command = "[" + strings.TrimSpace(value) + "]"
			case "State":
				p.state = field[0]
			case "PPid":
				p.parent, _ = strconv.Atoi(field[0])
			case "Uid":
				p.user = field[0]
			case "VmRSS":
				p.kilobytes, _ = strconv.Atoi(field[0])
			}
		}
		if command, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && len(command) > 0 {
			p.command = string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}))
		}
		p.command = hint.Printable(p.command)
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b process) int { return a.pid - b.pid })
	return list, nil
}

func ps(_ context.Context, s Streams, f *flag.FlagSet, args []string) error {
	if len(args) > 0 && args[0] != "" && strings.Trim(args[0], "auxwfel") == "" { // as on BSD
		args = args[1:]
	}
	ignore(f, "eAfaxuwl")
	if err := parse(f, args, 0, 0); err != nil {
		return err
	}
	list, err := processes()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "PID\tPARENT\tUSER\tSTATE\tKB\tCOMMAND")
	for _, p := range list {
		_, _ = fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%d\t%s\n", p.pid, p.parent, p.user, p.state, p.kilobytes, p.command)
	}
	return w.Flush()
}

func env(_ context.Context, s Streams, f *flag.FlagSet, args []string) error {
	if err := parse(f, args, 0, 1); err != nil {
		return err
	}
	vars := os.Environ()
	if f.NArg() == 1 {
		pid, err := strconv.Atoi(f.Arg(0))
		if err != nil {
			return errUsage
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			return err
		}
		vars = strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 })
	}
	slices.Sort(vars)
	for _, v := range vars {
		if _, err := fmt.Fprintln(s.Out, hint.Printable(v)); err != nil {
			return err
		}
	}
	return nil
}
