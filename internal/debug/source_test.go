package debug

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/hint"
)

// shells are those of this machine: the system's, and busybox where there is one.
func shells(t *testing.T) (out [][]string) {
	if runtime.GOOS != "linux" {
		t.Skip("the tools are for Linux")
	}
	out = append(out, []string{shell})
	if busybox, err := exec.LookPath("busybox"); err == nil {
		out = append(out, []string{busybox, "sh"})
	}
	return out
}

// write runs the command that writes down the tools, with these folders and this input.
func write(sh []string, command, folders []string, input []byte) (out, wrong string, err error) {
	c := exec.Command(sh[0], slices.Concat(sh[1:], command[1:7], folders)...)
	var stdout, stderr bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(input), &stdout, &stderr
	err = c.Run()
	return strings.TrimSpace(stdout.String()), stderr.String(), err
}

func TestToolsAreCarriedByAShell(t *testing.T) {
	l, err := loadFor(runtime.GOARCH, nil)
	if err != nil {
		t.Fatal(err)
	}
	input, command := l.input, l.command()
	names := func(folder string) (out []string) {
		list, _ := os.ReadDir(folder)
		for _, f := range list {
			out = append(out, f.Name())
		}
		return out
	}
	for _, sh := range shells(t) {
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		folders := []string{file + "/no", filepath.Join(dir, "yes"), filepath.Join(dir, "other")}

		// What is cut off, or is not what it is to be, leaves nothing that is taken for the tools.
		for what, part := range map[string][]byte{"cut off": input[:len(input)/2], "changed": append(bytes.Repeat([]byte{0}, 1<<14), input[1<<14:]...)} {
			if out, _, err := write(sh, command, folders, part); err == nil || out != "" || slices.Contains(names(folders[1]), "loader") {
				t.Errorf("%v, %s: %q, %v: %v", sh, what, out, err, names(folders[1]))
			}
		}

		// Several at the same time have one whole copy.
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if out, wrong, err := write(sh, slices.Concat(command[:6], []string{rand.Text()}), folders, input); err != nil || out != folders[1] {
					t.Errorf("%v: %q, %s, %v", sh, out, wrong, err)
				}
			})
		}
		all.Wait()
		if got := names(folders[1]); !slices.Equal(got, []string{"loader", "proxy.000"}) {
			t.Errorf("%v: there are %v", sh, got)
		}
		tool, err := exec.Command(filepath.Join(folders[1], "loader"), "tool", "cat", file).CombinedOutput()
		if err != nil {
			t.Errorf("%v: a tool: %v\n%s", sh, err, tool)
		}

		// They are found again, and where nothing can be written that is said.
		for _, c := range []struct{ folders, want []string }{{folders, folders[1:2]}, {folders[2:], nil}} {
			look, err := exec.Command(sh[0], slices.Concat(sh[1:], []string{"-c", lookScript, "bridge"}, c.folders)...).Output()
			if lines := strings.Split(strings.TrimSpace(string(look)), "\n"); err != nil || !slices.Equal(lines[1:], c.want) {
				t.Errorf("%v: looking in %q: %q, %v", sh, c.folders, look, err)
			}
		}
		if _, wrong, err := write(sh, command, folders[:1], input); err == nil || !strings.Contains(wrong, "no folder can be written: "+folders[0]) {
			t.Errorf("%v: %q, %v", sh, wrong, err)
		}
	}
}

// The pod's own volumes are not written to.
func TestToolsAreKeptOutOfVolumes(t *testing.T) {
	for _, c := range []struct {
		mounts string
		want   string
	}{
		{"", "/tmp /var/tmp /run /home "},
		{"/tmp", "/var/tmp /run /home "},
		{"/var /run/secrets /hom", "/tmp /run /home "},
		{"/var/ /tmp/ /run /home", ""},
	} {
		var mounts []corev1.VolumeMount
		for m := range strings.FieldsSeq(c.mounts) {
			mounts = append(mounts, corev1.VolumeMount{MountPath: m})
		}
		l, err := loadFor("arm64", mounts)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, folder := range l.folders {
			if parent, _, in := strings.Cut(folder, "/.bridge-"); !in {
				t.Errorf("%q", folder)
			} else if parent != "" {
				got += parent + " "
			}
		}
		if got != c.want {
			t.Errorf("beside mounts at %q: %q, want %q", c.mounts, got, c.want)
		}
	}
}

// The container's own image comes first, then those beside it; what does not run has none.
func TestImagesOfTheNode(t *testing.T) {
	running := `state: {running: {}}`
	pod := podFrom(t, `
metadata: {name: it, uid: u, namespace: shop}
spec: {nodeName: one, containers: [{name: side, image: mesh}, {name: app, image: orders}, {name: twin, image: orders}], initContainers: [{name: init, image: setup}], ephemeralContainers: [{name: bridge-debug-1-a, image: tools}, {name: bridge-debug-1-b, image: gone}, {name: debugger, image: theirs}]}
status: {containerStatuses: [{name: side, `+running+`}, {name: app, `+running+`}, {name: twin, `+running+`}], initContainerStatuses: [{name: init, state: {terminated: {}}}],
  ephemeralContainerStatuses: [{name: bridge-debug-1-a, `+running+`}, {name: bridge-debug-1-b, state: {terminated: {}}}, {name: debugger, `+running+`}]}
`)
	other := func(name, image, node string) corev1.Pod {
		return *podFrom(t, `{metadata: {name: `+name+`, uid: `+name+`}, spec: {nodeName: `+node+`, containers: [{name: c, image: `+image+`}]}, status: {containerStatuses: [{name: c, `+running+`}]}}`)
	}
	list := &corev1.PodList{Items: []corev1.Pod{*pod, other("b", "shop", "one"), other("a", "alpine", "one"), other("z", "mesh", "one"), other("far", "debian", "two")}}
	forbidden := false
	s := &server{pod: pod, first: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/pods") {
			return false
		}
		if forbidden {
			refuse(w, 403, "Forbidden")
			return true
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
		return true
	}}
	k := s.client(t)
	images := func(proxy string) (out []string) {
		for _, s := range sources(t.Context(), k, pod, "app", proxy) {
			out = append(out, s.image+" of "+s.pod+"/"+s.container)
		}
		return out
	}
	if got := images(""); fmt.Sprint(got) != "[orders of it/app mesh of it/side tools of it/bridge-debug-1-a alpine of a/c shop of b/c]" {
		t.Errorf("%v", got)
	}
	if got := images("proxy"); fmt.Sprint(got) != "[proxy of /]" {
		t.Errorf("%v", got)
	}
	forbidden = true
	if got := images(""); fmt.Sprint(got) != "[orders of it/app mesh of it/side tools of it/bridge-debug-1-a]" {
		t.Errorf("%v", got)
	}
}

// Where no image has a shell it is said what there is to be done; what is not answered is not taken for that, and the next is asked.
func TestNoShell(t *testing.T) {
	pod := named("")
	for _, c := range []struct {
		name    string
		answers []string // to the looks, one after the other
		ended   bool
		code    hint.Code
		words   string
		looks   int
	}{
		{"none has", []string{"OCI runtime exec failed: exec failed: unable to start container process: exec: \"/bin/sh\": stat /bin/sh: no such file or directory", "executable file not found in $PATH"}, false, hint.Usage, "none of the images", 2},
		{"one is not known", []string{"etcdserver: request timed out", "executable file not found in $PATH"}, false, hint.Other, "whether container app of pod shop/it has a shell is not known: ", 2},
		{"it may not be asked", []string{`pods "it" is forbidden: User "ada" cannot create resource "pods/exec" in API group "" in the namespace "shop"`, "executable file not found in $PATH"}, false, hint.Forbidden, "may not create pods/exec", 2},
		{"bridge is to end", []string{""}, true, 0, "context canceled", 0},
	} {
		looks := map[string]bool{}
		s := &server{first: func(w http.ResponseWriter, r *http.Request) bool {
			n := 0
			if r.URL.Query().Get("container") == "side" {
				n = 1
			}
			looks[r.URL.Query().Get("container")] = true
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprint(w, c.answers[n])
			return true
		}}
		ctx, end := context.WithCancel(t.Context())
		if c.ended {
			end()
		}
		_, _, err := choose(ctx, s.client(t), pod, []source{{"orders", "it", "app"}, {"mesh", "it", "side"}}, "", "name one")
		if err == nil || hint.CodeOf(err) != c.code && c.code != 0 || !strings.Contains(err.Error(), c.words) || len(looks) != c.looks || c.looks > 0 && !strings.HasSuffix(hint.Of(err), "name one") {
			t.Errorf("%s, after %d looks: %v (%v)", c.name, len(looks), err, hint.CodeOf(err))
		}
		end()
	}
}

// Who may not be root by the pod, without a number, has another image's user: that may be root, which the kubelet would not start, for ever.
func TestAnotherImageMayNotStart(t *testing.T) {
	own, other, proxy := source{"orders", "it", "app"}, source{"alpine", "a", "c"}, source{image: "proxy"}
	for pod, starts := range map[string]bool{
		`{containers: [{name: app, image: orders}]}`:                                                                         true,
		`{securityContext: {runAsNonRoot: true}, containers: [{name: app, image: orders}]}`:                                  false,
		`{containers: [{name: app, image: orders, securityContext: {runAsNonRoot: true}}]}`:                                  false,
		`{containers: [{name: app, image: orders, securityContext: {runAsNonRoot: true, runAsUser: 1000}}]}`:                 true,
		`{securityContext: {runAsUser: 7}, containers: [{name: app, image: orders, securityContext: {runAsNonRoot: true}}]}`: true,
	} {
		p := podFrom(t, `{metadata: {name: it}, spec: `+pod+`}`)
		for _, s := range []source{own, other, proxy} {
			c, _, err := (&Ephemeral{}).container(p, "app", s)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.startsAs(c, p, "app"); got != (starts || s != other) {
				t.Errorf("%s on %s: %v", pod, s.image, got)
			}
		}
	}
}

// That another image was left out for its user is said, and what helps then.
func TestImagesLeftOutAreToldOf(t *testing.T) {
	s := &server{first: func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = fmt.Fprint(w, "executable file not found in $PATH")
		return true
	}}
	pod := podFrom(t, `{metadata: {name: it, namespace: shop}, spec: {securityContext: {runAsNonRoot: true}, containers: [{name: app, image: orders}]}}`)
	e := &Ephemeral{Kube: s.client(t)}
	var there string
	_, _, _, err := e.choose(t.Context(), pod, "app", []source{{"orders", "it", "app"}, {"alpine", "a", "c"}}, &there)
	if hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "may not run as root") || !strings.Contains(hint.Of(err), "--proxy-image") {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
}
