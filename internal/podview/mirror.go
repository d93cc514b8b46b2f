package podview

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

// refreshPeriod is how often the pod is asked whether its files have changed: the kubelet itself takes up to a minute or two to notice.
const refreshPeriod = 10 * time.Second

// TokenSource makes a token of the target's ServiceAccount with the audience ("": the API server's), or gives the last one again while it is good.
type TokenSource func(ctx context.Context, audience string) (string, error)

// Mirror keeps a Folder as the container's files are.
type Mirror struct {
	Folder *Folder
	// Look asks the pod; (*tunnel.Client).View is one.
	Look func(ctx context.Context, have string) (*tunnel.View, error)
	// Account is where pods have their ServiceAccount's token. What is there is left out without Tokens.
	Account string
	Tokens  TokenSource
	Say     func(string)

	view *tunnel.View // the last
}

// First writes the files for the first time, and says which of the container's are not there.
func (m *Mirror) First(ctx context.Context) (v *tunnel.View, err error) {
	if m.view, err = m.Look(ctx, ""); err != nil {
		return nil, err
	}
	for _, e := range m.view.Entries {
		if e.Type == tunnel.Absent {
			m.Say(hint.Printable(fmt.Sprintf("not here: %s (%s)", e.Name, e.Data)))
		}
	}
	_, err = m.write(ctx)
	return m.view, err
}

// Run has the files follow the container's until ctx ends.
func (m *Mirror) Run(ctx context.Context) {
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(refreshPeriod):
		}
		changed, err := m.refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failed:
			m.Say(hint.Printable(fmt.Sprintf("the container's files are not refreshed: %v", err)))
		case len(changed) > 0:
			m.Say(hint.Printable("changed in the cluster: " + some(changed)))
		}
		failed = err != nil
	}
}

// some names the first of many.
func some(paths []string) string {
	const first = 20
	if more := len(paths) - first; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:first], ", "), more)
	}
	return strings.Join(paths, ", ")
}

func (m *Mirror) refresh(ctx context.Context) (changed []string, err error) {
	v, err := m.Look(ctx, m.view.Sum)
	if err != nil {
		return nil, err
	}
	if v != nil {
		m.view = v
	}
	return m.write(ctx)
}

// write makes the folder as the last view is, with tokens. changed are the files that were there before or are new, but for tokens.
func (m *Mirror) write(ctx context.Context) (changed []string, err error) {
	var entries []tunnel.Entry
	var tokens []string
	for _, e := range m.view.Entries {
		at := m.Account != "" && (e.Name == m.Account || strings.HasPrefix(e.Name, m.Account+"/"))
		switch {
		case m.Tokens == nil && (at || e.Type == tunnel.Token):
			continue
		case e.Type == tunnel.Token:
			text, err := m.Tokens(ctx, string(e.Data))
			if err != nil {
				return nil, err
			}
			e = tunnel.Entry{Type: tunnel.File, Name: path.Clean(e.Name), Data: []byte(text)}
			tokens = append(tokens, e.Name)
		}
		entries = append(entries, e)
	}
	changed, err = m.Folder.Write(entries)
	return slices.DeleteFunc(changed, func(name string) bool { return slices.Contains(tokens, name) }), err
}
