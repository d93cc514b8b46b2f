// Package witness watches the Services and EndpointSlices of namespaces and tells since when nothing of a Service, or of there being none,
// has changed. With that internal/dns gives an answer about its names again, past its lifetime and without a round trip. Why it is exact:
//
//  1. It is the cluster's own answer to that very question. No rule of a resolver's is repeated here, so there is no kind of Service, plugin
//     or domain for which it could be another one.
//  2. What makes it is watched, and has been as it is since longer before the question than any resolver in between remembers (the longest
//     lifetime seen in its namespace, and 15 s to hear of a change). So it would be the same now, but for a change whose event is on its way.
//  3. What else may make it (a rewrite to another Service, a template) is not watched, and a watch may stand still that seems to go on. So it
//     is asked for anew every 30 s while it is in use, is never older than 90 s, or than its lifetime, and is not given again once it has
//     changed by itself.
//  4. Where a watch is refused, has ended or has just begun, and of the first question for a name, the cluster is asked: one round trip. A
//     watch is tried again whatever ended it, less and less often.
//
// It keeps no objects: a watch begins with a list of one, and is of metadata alone; what is remembered is the names that have
// changed. So a namespace of 10,000 Services costs as little as one of ten, but for its events. cmd/bridge runs one beside a connect.
package witness
