// Prometheus' own discovery, as it runs inside Prometheus: its manager with the configuration that is given, in the words of
// `consul_sd_configs`. Prints the whole set of targets, as JSON in one line, whenever it changes.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/promslog"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"go.yaml.in/yaml/v2"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var config consul.SDConfig
	must(yaml.Unmarshal([]byte(os.Args[1]), &config))
	registry := prometheus.NewRegistry()
	metrics, err := discovery.CreateAndRegisterSDMetrics(registry)
	must(err)
	log := promslog.New(&promslog.Config{Writer: os.Stderr})
	manager := discovery.NewManager(context.Background(), log, registry, metrics, discovery.Updatert(200*time.Millisecond))
	must(manager.ApplyConfig(map[string]discovery.Configs{"consul": {&config}}))
	go func() { must(manager.Run()) }()
	for all := range manager.SyncCh() {
		targets := []map[string]string{}
		for _, group := range all["consul"] {
			for _, target := range group.Targets {
				labels := map[string]string{}
				for _, set := range []map[string]string{labelsOf(group.Labels), labelsOf(target)} {
					for name, value := range set {
						labels[name] = value
					}
				}
				targets = append(targets, labels)
			}
		}
		sort.Slice(targets, func(a, b int) bool {
			return targets[a]["__meta_consul_service_id"] < targets[b]["__meta_consul_service_id"]
		})
		line, err := json.Marshal(targets)
		must(err)
		fmt.Println(string(line))
	}
}

func labelsOf[N, V ~string](set map[N]V) map[string]string {
	plain := map[string]string{}
	for name, value := range set {
		plain[string(name)] = string(value)
	}
	return plain
}
