package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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
)

// machines are the folders without which this machine's programs do not run, or which have the user's own things. They are not hidden.
var machines = strings.Fields("/ /bin /boot /dev /etc /home /lib /lib32 /lib64 /libx32 /media /mnt /opt /proc /root /run /sbin /srv /sys /tmp /usr /var")

// needed are where the kernel, the programs and their libraries are: nothing is put there.
var needed = append(strings.Fields(`/bin /boot /dev /lib /lib32 /lib64 /libx32 /proc /sbin /sys /usr/bin /usr/lib /usr/lib32 /usr/lib64 /usr/libexec
	/usr/local/bin /usr/local/lib /usr/local/sbin /usr/sbin /etc/ld.so.cache /etc/ld.so.preload`), nsswitchConf, resolvConf)

// placer puts Files in place.
type placer struct {
	own    []string // folders that are not to be hidden: the program's, and the files' root
	homes  []string // and those in which the user works, in whose place nothing else is put
	opened []string // folders that were laid out anew
	layers []uint64 // the devices of their file systems
	left   []string
}

// place puts files where they belong. program is what will see them. left are those that are not there, and why; after an error the
// namespace is not what it should be.
func place(f Files, program string) (left []string, err error) {
	if len(f.Paths) == 0 {
		return nil, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(program) {
		program = filepath.Join(wd, program)
	}
	p := &placer{own: []string{resolved(program), resolved(f.Root)}}
	for _, home := range []string{resolved(wd), resolved(os.Getenv("HOME"))} {
		if home != "/" && filepath.IsAbs(home) {
			p.homes = append(p.homes, home)
		}
	}
	for _, path := range f.Paths {
		path = filepath.Clean("/" + path)
		if err := p.put(filepath.Join(f.Root, path), path); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, folder := range p.opened {
		// Where the user may not write, nothing is lost that they write.
		_ = unix.MountSetattr(unix.AT_FDCWD, folder, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	return p.left, os.Chdir(wd) // by its path, which may lead elsewhere now
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
		p.left = append(p.left, path+": "+why)
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
// has now. why says in words why that is not done.
func (p *placer) open(folder string) (why string, err error) {
	info, err := os.Stat(folder)
	if err != nil {
		return err.Error(), nil
	}
	if slices.Contains(p.layers, deviceOf(info)) {
		return "", nil
	}
	if slices.ContainsFunc(p.homes, func(h string) bool { return below(folder, h) }) {
		return "make it first, empty: " + folder + " is yours", nil
	}
	entries, err := os.ReadDir(folder)
	switch {
	case err != nil:
		return err.Error(), nil
	case len(entries) > maxEntries:
		return fmt.Sprintf("make it first: %s has more than %d files", folder, maxEntries), nil
	}
	readOnly := unix.Access(folder, unix.W_OK) != nil
	mode := info.Mode().Perm()
	options := fmt.Sprintf("mode=%o", mode)
	if info.Mode()&fs.ModeSticky != 0 {
		options = fmt.Sprintf("mode=1%03o", mode)
	}
	before, done, err := cover(folder, options)
	if err != nil {
		return err.Error(), nil
	}
	if info, err = os.Stat(folder); err != nil {
		return "", err
	}
	p.layers = append(p.layers, deviceOf(info))
	if readOnly {
		p.opened = append(p.opened, folder)
	}
	for _, e := range entries {
		if err := show(e, filepath.Join(before, e.Name()), filepath.Join(folder, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", done()
}

func deviceOf(info fs.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Dev }

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
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
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
