package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// pollEvery is how often a list is read again by a user who may not watch it.
const pollEvery = 3 * time.Second

var errGone = errors.New("the watch has ended")

type runtimeList interface {
	runtime.Object
	metav1.ListInterface
}

// list is a collection of objects and how to read it. get, when set, serves a user who may read the
// one object but not list.
type list struct {
	LabelSelector, FieldSelector string
	stopForbidden                bool // return, instead of polling, when it may not be listed
	list                         func(context.Context, metav1.ListOptions) (runtimeList, error)
	watch                        func(context.Context, metav1.ListOptions) (watch.Interface, error)
	get                          func(context.Context) (any, error)
}

// follow hands set all objects of l, under e's lock, at first and whenever they change, until ctx is
// done. It lists, then watches; whatever ends the watch (time, an expired version, a restarted API
// server) has it list again. It returns true when l may not be listed and that is to end it.
func follow[T any](ctx context.Context, e *Endpoints, name string, l list, set func([]T)) (forbidden bool) {
	options := metav1.ListOptions{LabelSelector: l.LabelSelector, FieldSelector: l.FieldSelector}
	for wait := backoff(0); ctx.Err() == nil; {
		items, version, err := readAll[T](ctx, l, options)
		if ctx.Err() != nil {
			return false
		}
		if apierrors.IsForbidden(err) && l.stopForbidden {
			return true
		}
		e.update(func() {
			e.parts[name].err = err
			if err == nil {
				e.parts[name].synced = true
				set(values(items))
			}
		})
		if err != nil {
			e.log("list failed", "resource", name, "error", err)
			wait.sleep(ctx)
			continue
		}
		if version == "" { // only get is allowed
			sleep(ctx, pollEvery)
			continue
		}
		began := time.Now()
		err = watchFrom(ctx, e, l, options, version, items, set)
		e.log("watch ended", "resource", name, "error", err)
		switch {
		case apierrors.IsForbidden(err):
			sleep(ctx, pollEvery)
		case time.Since(began) > time.Minute:
			wait = 0
		default:
			wait.sleep(ctx)
		}
	}
	return false
}

// readAll lists. Without the right to list it gets, and returns no version.
func readAll[T any](ctx context.Context, l list, o metav1.ListOptions) (items map[types.NamespacedName]T, version string, err error) {
	got, err := l.list(ctx, o)
	items = make(map[types.NamespacedName]T)
	if apierrors.IsForbidden(err) && l.get != nil {
		one, gerr := l.get(ctx)
		switch {
		case apierrors.IsNotFound(gerr):
			return items, "", nil
		case gerr != nil:
			return nil, "", err
		}
		add(items, one)
		return items, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	err = meta.EachListItem(got, func(o runtime.Object) error {
		add(items, o)
		return nil
	})
	return items, got.GetResourceVersion(), err
}

// watchFrom applies changes after version until the watch ends.
func watchFrom[T any](ctx context.Context, e *Endpoints, l list, o metav1.ListOptions, version string, items map[types.NamespacedName]T, set func([]T)) error {
	o.ResourceVersion, o.AllowWatchBookmarks = version, true
	// The API server ends it then; a random time keeps many clients from coming back together.
	seconds := int64(300 + rand.IntN(300))
	o.TimeoutSeconds = &seconds
	w, err := l.watch(ctx, o)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case ev, ok := <-w.ResultChan():
			if !ok {
				return errGone
			}
			switch ev.Type {
			case watch.Error:
				return apierrors.FromObject(ev.Object)
			case watch.Bookmark:
				continue
			case watch.Deleted:
				if m, err := meta.Accessor(ev.Object); err == nil {
					delete(items, key(m))
				}
			default:
				add(items, ev.Object)
			}
			e.update(func() { set(values(items)) })
		}
	}
}

func add[T any](items map[types.NamespacedName]T, o any) {
	m, err := meta.Accessor(o)
	if v, ok := o.(*T); ok && err == nil {
		items[key(m)] = *v
	}
}

func key(m metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()}
}

func values[T any](items map[types.NamespacedName]T) []T {
	all := make([]T, 0, len(items))
	for _, v := range items {
		all = append(all, v)
	}
	return all
}

// backoff is how often something has failed in a row.
type backoff int

// sleep waits 100 ms at first and 5 s in the end, half of it at random.
func (b *backoff) sleep(ctx context.Context) {
	d := min(100*time.Millisecond<<min(*b, 10), 5*time.Second)
	*b++
	sleep(ctx, d/2+rand.N(d/2))
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
