//! What befalls a world, by chance: processes die, machines lose power at any operation of their disk, disks fail, fill
//! up and rot, cables are cut, nodes stand still, clocks jump. At the end everything is mended.

use std::rc::Rc;
use std::time::Duration;

use data::Store as _;
use tokio::time::Instant;

use crate::node::{Machine, name};
use crate::world::World;

/// Before the first fault, so that the cluster can form.
const PEACE: (u64, u64) = (600, 2000);
/// How long faults go on.
const REIGN: (u64, u64) = (3000, 9000);

/// Lets faults happen for a while, then mends everything.
pub async fn reign(world: &Rc<World>) {
    let chance = &world.chance;
    tokio::time::sleep(chance.millis(PEACE.0, PEACE.1)).await;
    let until = Instant::now() + chance.millis(REIGN.0, REIGN.1);
    while Instant::now() < until && !world.is_judged() {
        tokio::time::sleep(chance.millis(20, 700)).await;
        befall(world).await;
    }
    world.trace.say("all faults are over");
    world.net.heal();
    for machine in &world.machines {
        machine.pause(false);
        machine.slow_disk.set(false);
        machine.disk.set_full(false);
    }
    // What was waited for when faults ceased goes on by itself.
    tokio::time::sleep(Duration::from_millis(1500)).await;
}

async fn befall(world: &Rc<World>) {
    let chance = &world.chance;
    if world.setup.failsafe && chance.percent(10) {
        return fill_most(world);
    }
    let machine = Rc::clone(chance.one_of(&world.machines));
    let place = machine.place;
    match chance.below(100) {
        0..12 => {
            world.befalls("process killed", place, 0);
            machine.end(&world.net, false);
            later(world, chance.millis(0, 900), move |world| world.nurse(&machine));
        }
        12..32 => {
            let operations = chance.below(25);
            world.befalls("power lost at an operation of the disk", place, operations);
            machine.disk.lose_power_after(operations);
            tokio::task::spawn_local(out_of_power(Rc::clone(world), machine));
        }
        32..36 => {
            world.befalls("power lost everywhere at once", place, 0);
            for machine in &world.machines {
                machine.disk.lose_power();
                tokio::task::spawn_local(out_of_power(Rc::clone(world), Rc::clone(machine)));
            }
        }
        36..52 => partition(world, &machine),
        52..58 => {
            let other = chance.one_of(&world.machines);
            world.befalls("connection broken", place, other.place as u64);
            world.net.break_one(&name(machine.place), &name(other.place));
        }
        58..68 => {
            let pause = chance.millis(50, 2500);
            world.befalls("node paused", place, u64::try_from(pause.as_millis()).unwrap_or_default());
            machine.pause(true);
            later(world, pause, move |_| machine.pause(false));
        }
        68..74 => {
            world.befalls("flush failed", place, 0);
            machine.excused.set(true);
            machine.disk.fail_next_flush();
            later(world, chance.millis(100, 1200), move |world| world.nurse(&machine));
        }
        74..78 => {
            world.befalls("disk full", place, 0);
            machine.excused.set(true);
            machine.disk.set_full(true);
            later(world, chance.millis(300, 1500), move |world| world.nurse(&machine));
        }
        78..84 => {
            world.befalls("disk slow", place, 0);
            machine.slow_disk.set(true);
            later(world, chance.millis(200, 2000), move |_| machine.slow_disk.set(false));
        }
        84..88 => {
            let jump = i64::try_from(chance.below(7_200_000)).unwrap_or_default() - 3_600_000;
            world.befalls("wall clock jumped", place, jump.cast_unsigned());
            machine.ahead_ms.set(jump);
        }
        88..94 => stop_in_order(world, machine).await,
        94..97 => {
            world.befalls("snapshot asked for", place, 0);
            if let Some(store) = machine.store() {
                drop(machine.run(async move { store.snapshot().await }));
            }
        }
        _ => {
            let to = chance.one_of(&world.machines).place;
            world.befalls("lead handed over", place, to as u64);
            if let Some(store) = machine.store() {
                drop(machine.run(async move { store.transfer_leader(&name(to)).await }));
            }
        }
    }
}

/// The disks of a majority are full at once: there is no quorum, and everybody can be reached.
fn fill_most(world: &Rc<World>) {
    let chance = &world.chance;
    let (from, most) = (chance.below(world.machines.len() as u64), world.machines.len() / 2 + 1);
    world.befalls("most disks full at once", usize::try_from(from).unwrap_or_default(), 0);
    for machine in world.machines.iter().cycle().skip(usize::try_from(from).unwrap_or_default()).take(most) {
        machine.excused.set(true);
        machine.disk.set_full(true);
        let machine = Rc::clone(machine);
        later(world, chance.millis(500, 4000), move |world| world.nurse(&machine));
    }
}

fn later(world: &Rc<World>, pause: Duration, act: impl FnOnce(&Rc<World>) + 'static) {
    let world = Rc::clone(world);
    tokio::task::spawn_local(async move {
        tokio::time::sleep(pause).await;
        act(&world);
    });
}

/// Waits until the power has gone, and has it come back.
async fn out_of_power(world: Rc<World>, machine: Rc<Machine>) {
    let until = Instant::now() + Duration::from_secs(2);
    while !machine.disk.is_dead() {
        if Instant::now() > until {
            machine.disk.lose_power();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.power_off(&machine);
    tokio::time::sleep(world.chance.millis(10, 1200)).await;
    if machine.disk.is_dead() {
        world.nurse(&machine);
    }
}

fn partition(world: &Rc<World>, machine: &Rc<Machine>) {
    let chance = &world.chance;
    let here = name(machine.place);
    let kind = chance.below(4);
    let others: Vec<String> =
        world.machines.iter().filter(|other| other.place != machine.place).map(|other| name(other.place)).collect();
    world.befalls(
        if matches!(kind, 1 | 2) { "cables cut in one direction" } else { "cables cut in both directions" },
        machine.place,
        kind,
    );
    match kind {
        // Off from everybody, in both directions,
        0 => others.iter().for_each(|other| {
            world.net.cut(&here, other);
            world.net.cut(other, &here);
        }),
        // in one,
        1 => others.iter().for_each(|other| world.net.cut(&here, other)),
        2 => others.iter().for_each(|other| world.net.cut(other, &here)),
        // or off from one other only.
        _ => {
            let other = chance.one_of(&others);
            world.net.cut(&here, other);
            world.net.cut(other, &here);
        }
    }
    later(world, chance.millis(100, 3000), |world| world.net.heal());
}

/// Stops a node in good order; sometimes a bit of its disk rots while it is down.
async fn stop_in_order(world: &Rc<World>, machine: Rc<Machine>) {
    let chance = &world.chance;
    let Some(store) = machine.store() else { return };
    world.befalls("stopped in order", machine.place, 0);
    let closed = tokio::time::timeout(Duration::from_secs(4), machine.run(async move { store.close().await })).await;
    let in_order = matches!(closed, Ok(Some(Ok(())))) && !machine.disk.is_dead();
    machine.end(&world.net, false);
    // What two disks have lost no cluster of three can give back.
    let first = world.machines.iter().all(|other| !other.damaged.get()) && !world.rotten.replace(true);
    if in_order && first && chance.percent(60) {
        let prefix = *chance.one_of(&["wal-", "wal-", "snapshot-", "superblock"]);
        if let Some((path, at)) = machine.disk.flip_a_bit(prefix) {
            world.befalls("bit of a stopped disk flipped", machine.place, at as u64);
            world.trace.say(format!("in {}", path.display()));
            machine.damaged.set(true);
        }
    } else if !first {
        world.rotten.set(true);
    }
    later(world, chance.millis(0, 700), move |world| world.nurse(&machine));
}
