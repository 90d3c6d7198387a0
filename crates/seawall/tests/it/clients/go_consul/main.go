// What programs in Go do with Consul's own client: every group of calls, with what must come of it; locks, semaphores and
// watches of the client's own among them. Prints one line for each group.
package main

import (
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/api/watch"
)

var client *api.Client

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func be(yes bool, what string, seen ...any) {
	if !yes {
		panic(fmt.Sprintf("%s: %v", what, seen))
	}
}

func agent() {
	a := client.Agent()
	self, err := a.Self()
	must(err)
	node, err := a.NodeName()
	must(err)
	be(self["Config"]["NodeName"] == node, "the node's name", self)
	members, err := a.Members(false)
	must(err)
	be(len(members) == 1 && members[0].Name == node, "members", members)
	must(a.ServiceRegister(&api.AgentServiceRegistration{
		ID: "web-1", Name: "web", Port: 8080, Address: "10.0.0.1", Tags: []string{"v1", "main"},
		Meta: map[string]string{"team": "a"}, Weights: &api.AgentWeights{Passing: 5, Warning: 1},
		TaggedAddresses: map[string]api.ServiceAddress{"lan": {Address: "10.0.0.1", Port: 8080}},
		Checks: api.AgentServiceChecks{
			{CheckID: "web-1-ttl", TTL: "30s"},
			{CheckID: "web-1-tcp", TCP: "127.0.0.1:1", Interval: "10s", Status: "passing"},
		},
	}))
	must(a.UpdateTTL("web-1-ttl", "fine", api.HealthPassing))
	checks, err := a.ChecksWithFilter("CheckID == `web-1-ttl`")
	must(err)
	be(len(checks) == 1 && checks["web-1-ttl"].Output == "fine", "the check", checks)
	services, err := a.ServicesWithFilter("Meta.team == a and `v1` in Tags")
	must(err)
	be(len(services) == 1 && services["web-1"].Weights.Passing == 5, "the service", services)
	one, meta, err := a.Service("web-1", nil)
	must(err)
	be(one.Port == 8080 && meta.LastContentHash != "", "one service", one, meta)
	status, infos, err := a.AgentHealthServiceByName("web")
	must(err)
	be(status != "" && len(infos) == 1, "health by name", status, infos)
	must(a.EnableServiceMaintenance("web-1", "disk"))
	_, info, err := a.AgentHealthServiceByID("web-1")
	must(err)
	be(info.AggregatedStatus == api.HealthMaint, "maintenance", info)
	must(a.DisableServiceMaintenance("web-1"))
	must(a.CheckRegister(&api.AgentCheckRegistration{Name: "disk", AgentServiceCheck: api.AgentServiceCheck{TTL: "1h"}}))
	must(a.PassTTL("disk", ""))
	must(a.WarnTTL("disk", ""))
	must(a.FailTTL("disk", ""))
	must(a.CheckDeregister("disk"))
	must(a.EnableNodeMaintenance("x"))
	must(a.DisableNodeMaintenance())
	must(a.Reload())
	_, err = a.Metrics()
	must(err)
	be(a.ForceLeave("nobody") != nil, "nobody cannot be forced out")
}

func catalogAndHealth() {
	c, h := client.Catalog(), client.Health()
	_, err := c.Register(&api.CatalogRegistration{Node: "db", Address: "10.0.0.9", NodeMeta: map[string]string{"rack": "1"},
		Service: &api.AgentService{Service: "postgres", Port: 5432},
		Checks:  api.HealthChecks{{CheckID: "pg", Name: "pg", Status: "passing", ServiceID: "postgres"}}}, nil)
	must(err)
	nodes, meta, err := c.Nodes(&api.QueryOptions{NodeMeta: map[string]string{"rack": "1"}})
	must(err)
	be(len(nodes) == 1 && meta.LastIndex > 0 && meta.KnownLeader, "nodes", nodes, meta)
	names, _, err := c.Services(&api.QueryOptions{Filter: "ServiceName matches `^post`"})
	must(err)
	be(len(names) == 1, "names by a filter", names)
	found, _, err := c.ServiceMultipleTags("web", []string{"v1", "main"}, &api.QueryOptions{Near: "_agent"})
	must(err)
	be(len(found) == 1 && found[0].ServiceMeta["team"] == "a", "by tags", found)
	node, _, err := c.Node("db", nil)
	must(err)
	be(node.Services["postgres"].Port == 5432, "a node", node)
	list, _, err := c.NodeServiceList("db", nil)
	must(err)
	be(len(list.Services) == 1, "a node's services", list)
	centers, err := c.Datacenters()
	must(err)
	be(len(centers) == 1, "datacenters", centers)
	for _, options := range []*api.QueryOptions{{AllowStale: true}, {RequireConsistent: true}, {UseCache: true}} {
		entries, _, err := h.Service("postgres", "", true, options)
		must(err)
		be(len(entries) == 1 && entries[0].Checks.AggregatedStatus() == "passing", "health", entries)
	}
	checks, _, err := h.State(api.HealthAny, nil)
	must(err)
	be(len(checks) >= 4, "checks", checks)
	of, _, err := h.Checks("postgres", nil)
	must(err)
	be(len(of) == 1, "checks of a service", of)
	on, _, err := h.Node("db", nil)
	must(err)
	be(len(on) == 1, "checks of a node", on)
	// A blocking query: nothing happens, then something does.
	_, meta, err = h.Service("postgres", "", false, nil)
	must(err)
	go func() {
		time.Sleep(200 * time.Millisecond)
		_, _ = c.Deregister(&api.CatalogDeregistration{Node: "db", ServiceID: "postgres"}, nil)
	}()
	entries, after, err := h.Service("postgres", "", false, &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 20 * time.Second})
	must(err)
	be(len(entries) == 0 && after.LastIndex > meta.LastIndex, "what was removed", entries, after)
	_, err = c.Deregister(&api.CatalogDeregistration{Node: "db"}, nil)
	must(err)
	connect, _, err := h.Connect("web", "", false, nil)
	must(err)
	be(len(connect) == 0, "no mesh", connect)
}

func keys() {
	kv := client.KV()
	_, err := kv.Put(&api.KVPair{Key: "a/b", Value: []byte("1"), Flags: 7}, nil)
	must(err)
	pair, _, err := kv.Get("a/b", nil)
	must(err)
	be(string(pair.Value) == "1" && pair.Flags == 7, "a key", pair)
	pair.Value = []byte("2")
	yes, _, err := kv.CAS(pair, nil)
	must(err)
	again, _, err := kv.CAS(pair, nil)
	must(err)
	be(yes && !again, "compare and set")
	list, _, err := kv.List("a/", nil)
	must(err)
	below, _, err := kv.Keys("", "/", nil)
	must(err)
	be(len(list) == 1 && len(below) == 1 && below[0] == "a/", "lists", list, below)
	none, _, err := kv.Get("none", nil)
	must(err)
	be(none == nil, "no key", none)
	ok, response, _, err := kv.Txn(api.KVTxnOps{
		{Verb: api.KVSet, Key: "a/c", Value: []byte("3")}, {Verb: api.KVGet, Key: "a/b"}, {Verb: api.KVCheckNotExists, Key: "x"},
	}, nil)
	must(err)
	be(ok && len(response.Results) == 2, "a transaction", response)
	ok, failed, _, err := kv.Txn(api.KVTxnOps{{Verb: api.KVGet, Key: "x"}}, nil)
	must(err)
	be(!ok && len(failed.Errors) == 1, "a transaction that fails", failed)
	_, err = kv.DeleteTree("a/", nil)
	must(err)
}

func locks() {
	one, err := client.LockOpts(&api.LockOptions{Key: "lock", SessionTTL: "10s", LockDelay: time.Millisecond})
	must(err)
	lost, err := one.Lock(nil)
	must(err)
	other, err := client.LockOpts(&api.LockOptions{Key: "lock", LockTryOnce: true, LockWaitTime: 200 * time.Millisecond})
	must(err)
	held, err := other.Lock(nil)
	must(err)
	be(held == nil, "one holder at a time")
	must(one.Unlock())
	<-lost
	held, err = other.Lock(nil)
	must(err)
	be(held != nil, "the next holder")
	must(other.Unlock())
	must(other.Destroy())
	var places []*api.Semaphore
	for n := 0; n < 2; n++ {
		place, err := client.SemaphorePrefix("places", 2)
		must(err)
		_, err = place.Acquire(nil)
		must(err)
		places = append(places, place)
	}
	third, err := client.SemaphoreOpts(&api.SemaphoreOptions{Prefix: "places", Limit: 2, SemaphoreTryOnce: true, SemaphoreWaitTime: 200 * time.Millisecond})
	must(err)
	none, err := third.Acquire(nil)
	must(err)
	be(none == nil, "two places are two")
	for _, place := range places {
		must(place.Release())
	}
}

func sessions() {
	s := client.Session()
	id, _, err := s.Create(&api.SessionEntry{Name: "mine", TTL: "10s", Behavior: api.SessionBehaviorDelete}, nil)
	must(err)
	entry, _, err := s.Renew(id, nil)
	must(err)
	be(entry.ID == id, "renewed", entry)
	info, _, err := s.Info(id, nil)
	must(err)
	be(info.Name == "mine", "info", info)
	all, _, err := s.List(nil)
	must(err)
	be(len(all) == 1, "sessions", all)
	_, err = s.Destroy(id, nil)
	must(err)
	gone, _, err := s.Renew(id, nil)
	must(err)
	be(gone == nil, "an ended session", gone)
}

func queries() {
	q := client.PreparedQuery()
	id, _, err := q.Create(&api.PreparedQueryDefinition{Name: "any-web", Service: api.ServiceQuery{Service: "web",
		Failover: api.QueryFailoverOptions{Datacenters: []string{"elsewhere"}}, Tags: []string{"v1"}}}, nil)
	must(err)
	got, _, err := q.Get(id, nil)
	must(err)
	be(len(got) == 1 && got[0].Service.Failover.Datacenters[0] == "elsewhere", "a query", got)
	_, err = q.Update(&api.PreparedQueryDefinition{ID: id, Name: "any-web", Service: api.ServiceQuery{Service: "consul"}}, nil)
	must(err)
	done, _, err := q.Execute("any-web", nil)
	must(err)
	be(len(done.Nodes) == 1, "carried out", done)
	list, _, err := q.List(nil)
	must(err)
	be(len(list) == 1, "queries", list)
	_, err = q.Delete(id, nil)
	must(err)
}

func events() {
	id, _, err := client.Event().Fire(&api.UserEvent{Name: "deploy", Payload: []byte("53")}, nil)
	must(err)
	list, _, err := client.Event().List("deploy", nil)
	must(err)
	be(len(list) == 1 && list[0].ID == id && string(list[0].Payload) == "53", "events", list)
}

func cluster() {
	leader, err := client.Status().Leader()
	must(err)
	peers, err := client.Status().Peers()
	must(err)
	be(len(peers) == 1 && peers[0] == leader, "peers", peers, leader)
	raft, err := client.Operator().RaftGetConfiguration(nil)
	must(err)
	be(len(raft.Servers) == 1 && raft.Servers[0].Leader, "raft", raft)
	health, err := client.Operator().AutopilotServerHealth(nil)
	must(err)
	be(health.Healthy, "autopilot", health)
	usage, _, err := client.Operator().Usage(nil)
	must(err)
	be(len(usage.Usage) == 1, "usage", usage)
	be(client.Operator().RaftRemovePeerByID("nobody", nil) != nil, "nobody is no peer")
	_, err = client.Operator().KeyringList(nil)
	be(err != nil, "no keyring")
	_, err = client.Coordinate().Datacenters()
	must(err)
	_, _, err = client.Coordinate().Nodes(nil)
	must(err)
	_, _, err = client.ACL().TokenList(nil)
	be(err != nil, "no ACLs")
}

// The client's watches, on which many programs rest.
func watches() {
	plan, err := watch.Parse(map[string]any{"type": "service", "service": "watched"})
	must(err)
	seen := make(chan int, 16)
	plan.Handler = func(_ uint64, raw any) { seen <- len(raw.([]*api.ServiceEntry)) }
	go func() { _ = plan.RunWithClientAndHclog(client, nil) }()
	wait := func(wanted int) {
		for deadline := time.After(20 * time.Second); ; {
			select {
			case count := <-seen:
				if count == wanted {
					return
				}
			case <-deadline:
				panic(fmt.Sprintf("the watch has not seen %d", wanted))
			}
		}
	}
	wait(0)
	must(client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: "watched"}))
	wait(1)
	must(client.Agent().ServiceDeregister("watched"))
	wait(0)
	plan.Stop()
}

func main() {
	var err error
	client, err = api.NewClient(&api.Config{Address: os.Args[1]})
	must(err)
	for _, one := range []struct {
		name string
		run  func()
	}{
		{"agent", agent}, {"catalog and health", catalogAndHealth}, {"keys", keys}, {"locks", locks}, {"sessions", sessions},
		{"queries", queries}, {"events", events}, {"cluster", cluster}, {"watches", watches},
	} {
		one.run()
		fmt.Println("passed", one.name)
	}
}
