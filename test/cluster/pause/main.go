// Command pause is all that runs in a pod's sandbox container: it holds the pod's namespaces open until
// it is told to stop. test/cluster builds it and puts it, alone, into an image.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
