// Kstatus reads Kubernetes objects as YAML documents from standard input and prints, one line each, what kstatus says of
// them: the rules by which Flux and kpt tell whether something that was applied is done.
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

func main() {
	decoder := yaml.NewYAMLOrJSONDecoder(os.Stdin, 4096)
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			log.Fatalf("not an object: %v", err)
		}
		found, err := status.Compute(object)
		if err != nil {
			log.Fatalf("%s: %v", object.GetName(), err)
		}
		fmt.Println(found.Status)
	}
}
