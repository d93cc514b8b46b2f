package proxypod

import (
	"slices"
	"testing"
)

// Who has init containers run beside an original that still serves is told which of them work on its files.
func TestInitContainersOnTheOriginalsVolumes(t *testing.T) {
	template := templateOf(t, `
spec:
  initContainers:
  - {name: owner, image: m, volumeMounts: [{name: data, mountPath: /data}, {name: node, mountPath: /node}, {name: scratch, mountPath: /tmp}]}
  - {name: reader, image: m, volumeMounts: [{name: data, mountPath: /data, readOnly: true}, {name: own, mountPath: /own}]}
  - {name: format, image: m, volumeDevices: [{name: disk, devicePath: /dev/disk}], volumeMounts: [{name: archive, mountPath: /archive}]}
  - {name: mesh, image: m, restartPolicy: Always, volumeMounts: [{name: data, mountPath: /data}]}
  containers: [{name: app, image: m, volumeDevices: [{name: disk, devicePath: /dev/disk}]}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: disk, persistentVolumeClaim: {claimName: disk}}
  - {name: archive, persistentVolumeClaim: {claimName: archive, readOnly: true}}
  - {name: node, hostPath: {path: /srv}}
  - {name: scratch, emptyDir: {}}
  - {name: own, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce]}}}}
`)
	for wanted, want := range map[bool]string{
		false: "init containers are not run in the proxy's pod: owner, reader, format; --init runs them",
		true:  `init containers are run once more, in the proxy's pod, before it answers: owner (with the original's own volumes "data" and "node", which that uses meanwhile), reader, format (with the original's own volume "disk", which that uses meanwhile)`,
	} {
		_, notes, err := Deployment(Spec{Name: "bridge-x", Lease: "bridge-x", Template: template, Container: "app", Init: wanted, Source: Source{Image: "proxy"}})
		if err != nil || !slices.Contains(notes, want) || !slices.Contains(notes, `volume "disk" at /dev/disk is not in the proxy's pod`) {
			t.Errorf("%v: %q, %v", wanted, notes, err)
		}
	}
}
