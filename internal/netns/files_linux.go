package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxEntries is how many files a folder may have that is laid out anew: each is a mount.
	maxEntries = 2000
	// oldRoot is where the machine's own root folder is for a moment.
	oldRoot = ".bridge-old-root"
	// maxLines is how many lines Namespace.Left and Hidden have each, of maxLinesSize bytes in all: a report has to hold them, and somebody
	// reads them.
	maxLines     = 100
	maxLinesSize = 10 << 10
)

// machines are the folders without which this machine's programs do not run, or which have the user's own things. They are not hidden.
var machines = strings.Fields("/ /bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr /var")

// needed are where the kernel, the programs and their libraries are: nothing is put there.
var needed = append(strings.Fields(`/bin /boot /dev /lib /lib32 /lib64 /libx32 /proc /sbin /sys /usr/bin /usr/lib /usr/lib32 /usr/lib64 /usr/libexec
	/usr/local/bin /usr/local/lib /usr/local/sbin /usr/sbin /etc/ld.so.cache /etc/ld.so.preload`), nsswitchConf, resolvConf)

// placer puts Files in place.
type placer struct {
	own    []string          // what is not to be hidden: the program, the files' root, and the folder in which the user works
	homes  []string          // the user's, in which nothing is put
	layers map[uint64]string // folders that were laid out anew, by the devices of their file systems
	left   lines
	hidden lines
}

// lines are some for a report, at most maxLines.
type lines struct {
	list []string
	size int
	more int // that there is no room for
}

func (l *lines) add(line string) {
	if len(l.list) == maxLines || l.size+len(line) > maxLinesSize {
		l.more++
		return
	}
	l.list, l.size = append(l.list, line), l.size+len(line)
}

func (l *lines) all() []string {
	if l.more > 0 {
		return append(l.list, fmt.Sprintf("%d more", l.more))
	}
	return l.list
}

// place puts files where they belong. program is what will see them. left are those that are not there, and why, and hidden the paths at
// which this machine has something that the program does not see; after an error the namespace is not what it should be.
func place(f Files, program string) (left, hidden []string, err error) {
	if len(f.Paths) == 0 {
		return nil, nil, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, nil, err
	}
	if !filepath.IsAbs(program) {
		program = filepath.Join(wd, program)
	}
	p := &placer{own: []string{resolved(program), resolved(f.Root)}, layers: map[uint64]string{}}
	if wd := resolved(wd); wd != "/" {
		p.own = append(p.own, wd)
	}
	homes := []string{os.Getenv("HOME")}
	if u, err := user.Current(); err == nil { // ssh goes by this one
		homes = append(homes, u.HomeDir)
	}
	for _, home := range homes {
		if home = resolved(home); home != "/" && filepath.IsAbs(home) {
			p.homes = append(p.homes, home)
		}
	}
	for _, path := range f.Paths {
		path = filepath.Clean("/" + path)
		if err := p.put(filepath.Join(f.Root, path), path); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, folder := range p.layers {
		// The user may not write there outside, and what they wrote here would be lost.
		if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|layerFlags, ""); err != nil {
			return nil, nil, &os.PathError{Op: "make read-only", Path: folder, Err: err}
		}
	}
	return p.left.all(), p.hidden.all(), os.Chdir(wd) // by its path, which may lead elsewhere now
}

// something tells whether there is anything in a folder or a file.
func something(path string, info fs.FileInfo) bool {
	if !info.IsDir() {
		return info.Size() > 0
	}
	entries, err := os.ReadDir(path)
	return err != nil || len(entries) > 0
}

// resolved is a path without links, or as it is where that cannot be said.
func resolved(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}

// below tells whether a path is folder, or in it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// put puts what is at source at a path.
func (p *placer) put(source, path string) error {
	leave := func(why string) error {
		p.left.add(path + ": " + why)
		return nil
	}
	info, err := os.Stat(source)
	if err != nil {
		return leave(err.Error())
	}
	// The part of the path that is there.
	there, missing := path, ""
	var at string
	for at, err = filepath.EvalSymlinks(there); errors.Is(err, fs.ErrNotExist); at, err = filepath.EvalSymlinks(there) {
		if _, err := os.Lstat(there); err == nil {
			return leave("a link of this machine leads nowhere there")
		}
		there, missing = filepath.Dir(there), filepath.Join(filepath.Base(there), missing)
	}
	if err != nil {
		return leave(err.Error())
	}
	target := filepath.Join(at, missing)
	if slices.ContainsFunc(needed, func(n string) bool { return below(target, resolved(n)) }) {
		return leave("there CMD needs this machine's own")
	}
	if slices.ContainsFunc(p.homes, func(home string) bool { return below(target, home) }) {
		return leave("it is in your home, which stays yours: programs do what their files there say")
	}
	if missing == "" {
		now, err := os.Stat(at)
		switch {
		case err != nil:
			return leave(err.Error())
		case now.IsDir() != info.IsDir():
			return leave("this machine has a folder in the place of a file there, or a file in that of a folder")
		case slices.Contains(machines, at), slices.ContainsFunc(slices.Concat(p.own, p.homes), func(o string) bool { return below(o, at) }):
			return leave("it would hide what CMD needs of this machine")
		}
		if something(at, now) {
			p.hidden.add(path)
		}
		return p.mount(source, at)
	}
	if now, err := os.Stat(at); err != nil || !now.IsDir() {
		return leave("this machine has no folder there")
	}
	switch why, err := p.open(at); {
	case err != nil:
		return err
	case why != "":
		return leave(why)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := mountPoint(target, info.IsDir()); err != nil {
		return err
	}
	return p.mount(source, target)
}

// mount shows the programs source at a path, which they may not change, as in a pod.
func (p *placer) mount(source, at string) error {
	if err := bind(source, at); err != nil {
		return err
	}
	// Before Linux 5.12 they may: it is a copy.
	_ = unix.MountSetattr(unix.AT_FDCWD, at, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return nil
}

// open makes a folder one in which something can be made without a change to the machine's: a new one, which has all that the folder
// has now, and is read-only at the end. why says in words why that is not done: where the user may write, what they write is to stay.
func (p *placer) open(folder string) (why string, err error) {
	info, err := os.Stat(folder)
	if err != nil {
		return err.Error(), nil
	}
	if _, ok := p.layers[deviceOf(info)]; ok {
		return "", nil
	}
	if unix.Access(folder, unix.W_OK) == nil {
		return "make it first, empty: " + folder + " is yours", nil
	}
	entries, err := os.ReadDir(folder)
	switch {
	case err != nil:
		return err.Error(), nil
	case len(entries) > maxEntries:
		return fmt.Sprintf("make it first: %s has more than %d files", folder, maxEntries), nil
	}
	before, done, err := cover(folder, fmt.Sprintf("mode=%o", info.Mode().Perm()|0o700))
	if err != nil {
		return err.Error(), nil
	}
	if info, err = os.Stat(folder); err != nil {
		return "", err
	}
	p.layers[deviceOf(info)] = folder
	for _, e := range entries {
		if err := show(e, filepath.Join(before, e.Name()), filepath.Join(folder, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", done()
}

func deviceOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Dev }

// layerFlags are of the file systems that folders are laid out anew in.
const layerFlags = unix.MS_NOSUID | unix.MS_NODEV

// cover mounts a new file system over a folder. before is a path to what it had, until done is called. After an error all is as it was.
func cover(folder, options string) (before string, done func() error, err error) {
	at := folder
	if folder == "/" {
		at = "/tmp" // for a moment
	}
	old, err := os.OpenFile(folder, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", layerFlags, options); err != nil {
		_ = old.Close()
		return "", nil, &os.PathError{Op: "mount", Path: at, Err: err}
	}
	if folder != "/" {
		return fmt.Sprintf("/proc/self/fd/%d", old.Fd()), old.Close, nil
	}
	_ = old.Close()
	before = "/" + oldRoot
	err = os.Mkdir(at+before, 0o700)
	if err == nil {
		err = os.NewSyscallError("pivot_root", unix.PivotRoot(at, at+before)) // not where the root is the first of all, as of a live CD
	}
	if err != nil {
		_ = unix.Unmount(at, unix.MNT_DETACH)
		return "", nil, err
	}
	return before, func() error {
		if err := unix.Unmount(before, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: before, Err: err}
		}
		return os.Remove(before)
	}, nil
}

// show makes what is at from be at a path where nothing is.
func show(e fs.DirEntry, from, at string) error {
	if e.Type()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(to, at)
	}
	if err := mountPoint(at, e.IsDir()); err != nil {
		return err
	}
	return bind(from, at)
}

func bind(from, at string) error {
	if err := unix.Mount(from, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return &os.PathError{Op: "mount", Path: at, Err: err}
	}
	return nil
}

// mountPoint makes an empty folder or file.
func mountPoint(at string, folder bool) error {
	if folder {
		return os.Mkdir(at, 0o755)
	}
	return os.WriteFile(at, nil, 0o644)
}
