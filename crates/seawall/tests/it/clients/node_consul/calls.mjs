// Every call of the client's README, as it stands there, with what must come of it. A call that is not there is said to
// be "absent": the client throws, and that is what is expected. Prints one line for each: what, and how it ended.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.argv[2] + "/");
const Consul = require("consul");
const [host, port] = process.argv[3].split(":");
const consul = new Consul({ host, port });

async function call(name, run) {
  const value = await run();
  console.log(`called ${name}`);
  return value;
}
async function absent(name, run, status) {
  await assert.rejects(run, (error) => {
    assert.equal(error.statusCode, status, `${name}: ${error.message}`);
    return true;
  });
  console.log(`absent ${name}`);
}

const self = await call("agent.self", () => consul.agent.self());
const node = self.Config.NodeName;
assert.equal(self.Member.Name, node);
const members = await call("agent.members", () => consul.agent.members());
assert.equal(members[0].Name, node);
await call("agent.reload", () => consul.agent.reload());
await call("agent.maintenance", () => consul.agent.maintenance({ enable: true, reason: "disk" }));
await consul.agent.maintenance({ enable: false });
await absent("agent.join", () => consul.agent.join("127.0.0.2"), 404);
await absent("agent.forceLeave", () => consul.agent.forceLeave("node2"), 500);

await call("agent.service.register", () =>
  consul.agent.service.register({ name: "example", port: 80, tags: ["dev", "web"], check: { ttl: "15s" } }));
const services = await call("agent.service.list", () => consul.agent.service.list());
assert.deepEqual(services.example.Tags, ["dev", "web"]);
await call("agent.check.register", () =>
  consul.agent.check.register({ name: "check", ttl: "15s", notes: "This is an example check.", serviceid: "example" }));
await call("agent.check.pass", () => consul.agent.check.pass("check"));
assert.equal((await call("agent.check.list", () => consul.agent.check.list())).check.Status, "passing");
await call("agent.check.warn", () => consul.agent.check.warn({ id: "check", note: "slow" }));
assert.equal((await consul.agent.check.list()).check.Output, "slow");
await call("agent.check.fail", () => consul.agent.check.fail("check"));
assert.equal((await consul.agent.check.list()).check.Status, "critical");
await call("agent.service.maintenance", () => consul.agent.service.maintenance({ id: "example", enable: true }));
await consul.agent.service.maintenance({ id: "example", enable: false });

await call("catalog.register", () =>
  consul.catalog.register({ node: "db", address: "10.0.0.9", service: { service: "postgres", port: 5432 } }));
assert.deepEqual(await call("catalog.datacenters", () => consul.catalog.datacenters()), [self.Config.Datacenter]);
assert.deepEqual(await call("catalog.connect.nodes", () => consul.catalog.connect.nodes("example")), []);
assert.equal((await call("catalog.node.list", () => consul.catalog.node.list())).length, 2);
assert.equal((await call("catalog.node.services", () => consul.catalog.node.services("db"))).Services.postgres.Port, 5432);
assert.deepEqual((await call("catalog.service.list", () => consul.catalog.service.list())).example.sort(), ["dev", "web"]);
assert.equal((await call("catalog.service.nodes", () => consul.catalog.service.nodes("postgres")))[0].Address, "10.0.0.9");
await call("catalog.deregister", () => consul.catalog.deregister({ node: "db" }));
assert.equal((await consul.catalog.node.list()).length, 1);

const fired = await call("event.fire", () => consul.event.fire("deploy", "53"));
const events = await call("event.list", () => consul.event.list("deploy"));
assert.equal(events[0].ID, fired.ID);
assert.equal(events[0].Payload, "53");

assert.ok((await call("health.node", () => consul.health.node(node))).some((check) => check.CheckID === "serfHealth"));
assert.equal((await call("health.checks", () => consul.health.checks("example"))).length, 2);
assert.equal((await call("health.service", () => consul.health.service("example")))[0].Service.Port, 80);
assert.equal((await consul.health.service({ service: "example", passing: true })).length, 0);
assert.ok((await call("health.state", () => consul.health.state("critical"))).length > 0);

assert.equal(await call("kv.set", () => consul.kv.set("hello", "old")), true);
// A watch: told at once, and again when it changes.
const watch = await call("watch", async () => consul.watch({ method: consul.kv.get, options: { key: "hello" }, backoffFactor: 100 }));
await new Promise((resolve, reject) => {
  watch.on("change", (data) => {
    if (data.Value === "world") resolve();
    else consul.kv.set("hello", "world").catch(reject);
  });
  watch.on("error", reject);
});
watch.end();
assert.equal((await call("kv.get", () => consul.kv.get("hello"))).Value, "world");
assert.equal(await consul.kv.get("none"), undefined);
await consul.kv.set("a/b", "1");
assert.deepEqual(await call("kv.keys", () => consul.kv.keys("a/")), ["a/b"]);
await call("kv.del", () => consul.kv.del({ key: "a/", recurse: true }));
assert.equal(await consul.kv.get("a/b"), undefined);

const made = await call("query.create", () =>
  consul.query.create({ name: "any-example", service: { service: "example", onlypassing: false } }));
assert.equal((await call("query.list", () => consul.query.list())).length, 1);
assert.equal((await call("query.get", () => consul.query.get(made.ID))).Name, "any-example");
await call("query.update", () =>
  consul.query.update({ query: made.ID, name: "any-example", service: { service: "consul" } }));
assert.equal((await call("query.execute", () => consul.query.execute("any-example"))).Nodes.length, 1);
// The client wants a list here, which Consul does not answer either.
await call("query.explain", () => consul.query.explain("any-example"));
await call("query.destroy", () => consul.query.destroy(made.ID));
assert.equal((await consul.query.list()).length, 0);

const session = await call("session.create", () => consul.session.create({ ttl: "30s", lockdelay: "1s" }));
assert.equal(await consul.kv.set({ key: "lock", value: "held", acquire: session.ID }), true);
assert.equal((await call("session.get", () => consul.session.get(session.ID))).ID, session.ID);
assert.equal((await call("session.node", () => consul.session.node(node))).length, 1);
assert.equal((await call("session.list", () => consul.session.list())).length, 1);
assert.equal((await call("session.renew", () => consul.session.renew(session.ID)))[0].TTL, "30s");
await call("session.destroy", () => consul.session.destroy(session.ID));
assert.equal((await consul.session.list()).length, 0);

const leader = await call("status.leader", () => consul.status.leader());
assert.ok((await call("status.peers", () => consul.status.peers())).includes(leader));

const done = await call("transaction.create", () =>
  consul.transaction.create([
    { KV: { Verb: "set", Key: "key1", Value: Buffer.from("value1").toString("base64") } },
    { KV: { Verb: "delete", Key: "key2" } },
  ]));
assert.equal(done.Errors, null);
assert.equal((await consul.kv.get("key1")).Value, "value1");

await call("agent.check.deregister", () => consul.agent.check.deregister("check"));
await call("agent.service.deregister", () => consul.agent.service.deregister("example"));
assert.deepEqual(await consul.agent.service.list(), {});

// ACLs are off for ever: 401, as Consul answers where they are.
await absent("acl.bootstrap", () => consul.acl.bootstrap(), 401);
await absent("acl.replication", () => consul.acl.replication(), 401);
await absent("acl.legacy.create", () => consul.acl.legacy.create({ name: "a" }), 401);
await absent("acl.legacy.update", () => consul.acl.legacy.update({ id: "a" }), 401);
await absent("acl.legacy.destroy", () => consul.acl.legacy.destroy("a"), 401);
await absent("acl.legacy.get", () => consul.acl.legacy.get("a"), 401);
await absent("acl.legacy.clone", () => consul.acl.legacy.clone("a"), 401);
await absent("acl.legacy.list", () => consul.acl.legacy.list(), 401);
