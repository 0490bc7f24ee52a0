// Renders the manifests as their users' tools do: the chart by Helm's engine, the plain files by Kustomize.
//
//	render chart DIR [KEY=VALUE…]   prints {template: text} as JSON, for the release `weft` in `weft-system`
//	render kustomize DIR            prints the YAML that `kubectl kustomize DIR` prints
//	render write MANIFESTS          makes the plain files from the chart
//	render check MANIFESTS          fails, naming them, if one is not what `write` would make it
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"regexp"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/strvals"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("render chart DIR [KEY=VALUE…] | kustomize DIR | write MANIFESTS | check MANIFESTS")
	}
	var err error
	switch os.Args[1] {
	case "chart":
		var texts map[string]string
		if texts, err = chart(os.Args[2], os.Args[3:]); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(texts)
		}
	case "kustomize":
		err = kustomize(os.Args[2])
	case "write", "check":
		err = plain(os.Args[2], os.Args[1] == "write")
	default:
		err = fmt.Errorf("no such command: %s", os.Args[1])
	}
	if err != nil {
		log.Fatalf("render: %v", err)
	}
}

func chart(dir string, settings []string) (map[string]string, error) {
	log.SetOutput(io.Discard) // the loader says that it follows a link: the CRDs
	chart, err := loader.LoadDir(dir)
	log.SetOutput(os.Stderr)
	if err != nil {
		return nil, err
	}
	given := map[string]any{}
	for _, setting := range settings {
		if err := strvals.ParseInto(setting, given); err != nil {
			return nil, fmt.Errorf("%s: %w", setting, err)
		}
	}
	// As `helm template` does; the schema of the values is checked in here.
	options := chartutil.ReleaseOptions{Name: "weft", Namespace: "weft-system", Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(chart, given, options, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	texts, err := engine.Render(chart, values)
	if err != nil {
		return nil, err
	}
	shown := map[string]string{}
	for name, text := range texts {
		if strings.TrimSpace(text) != "" && !strings.HasPrefix(path.Base(name), "_") {
			shown[strings.TrimPrefix(name, chart.Name()+"/templates/")] = text
		}
	}
	return shown, nil
}

func kustomize(dir string) error {
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return err
	}
	text, err := objects.AsYaml()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

// made is the plain files: the chart's templates under its default values, with the namespace.
func made(manifests string) (map[string]string, error) {
	dir, base := path.Join(manifests, "helm/weft"), []string{"managedBy=weft", "namespace.create=true", "uninstall.hook=false"} // hooks are Helm's
	texts, err := chart(dir, base)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for name, text := range texts {
		if name != "crds.yaml" && name != "NOTES.txt" { // the CRDs are the chart's source, not made from it
			files["base/"+name] = head + strings.TrimLeft(text, "\n")
		}
	}
	if texts, err = chart(dir, append(base, "jaeger.enabled=true")); err != nil {
		return nil, err
	}
	for _, name := range []string{"jaeger.yaml", "config.yaml"} {
		files["addons/jaeger/"+name] = head + strings.TrimLeft(texts[name], "\n")
	}
	files["addons/jaeger/checksum.yaml"] = head + patch("DaemonSet", "weft-agent", texts["agent.yaml"]) + "---\n" +
		patch("Deployment", "weft-controller", texts["controller.yaml"])
	if texts, err = chart(dir, append(base, "nodeTaint.remove=true")); err != nil {
		return nil, err
	}
	_, taint, _ := strings.Cut(texts["controller-rbac.yaml"], "---\n# A taint")
	files["addons/node-taint/rbac.yaml"] = head + "# A taint" + taint
	if texts, err = chart(dir, append(base, "hostnamePolicy.enabled=true")); err != nil {
		return nil, err
	}
	files["addons/hostname-policy/policy.yaml"] = head + strings.TrimLeft(texts["hostname-policy.yaml"], "\n")
	return files, nil
}

const head = "# Made from manifests/helm/weft by `./dev manifests`.\n"

var checksum = regexp.MustCompile(`weft\.dev/config-checksum: \w+`)

// patch restarts a workload whose configuration is another one.
func patch(kind, name, text string) string {
	return fmt.Sprintf("apiVersion: apps/v1\nkind: %s\nmetadata: {namespace: weft-system, name: %s}\n"+
		"spec:\n  template:\n    metadata:\n      annotations:\n        %s\n", kind, name, checksum.FindString(text))
}

func plain(manifests string, write bool) error {
	files, err := made(manifests)
	if err != nil {
		return err
	}
	var old []string
	for name, text := range files {
		file := path.Join(manifests, name)
		if now, err := os.ReadFile(file); err == nil && string(now) == text {
			continue
		}
		if old = append(old, name); write {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	if sort.Strings(old); len(old) > 0 && !write {
		return fmt.Errorf("%s: not what the chart makes; run ./dev manifests", strings.Join(old, ", "))
	}
	return nil
}
