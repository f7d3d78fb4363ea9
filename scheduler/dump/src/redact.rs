//! A state without the names of its cluster and tenants, which is planned like the one with them.
//!
//! Names of nodes, namespaces, gangs, pods, roles, devices and fabric cliques, UIDs, values of labels and taints, and messages become other
//! texts: `r<rank>-<hash>`. Equal texts become equal ones, wherever they stand, so that a selector finds the label that it found
//! before. The rank is the place among all of them in order: where everything else is equal the planner goes by the smaller name,
//! and would come to another plan if hashes had another order. What stays is what a plan depends on, and says
//! little of anybody: numbers and times, keys of labels and taints, names of resources, models of GPUs, what agents say is wrong with
//! them, and the configuration.
//!
//! Each struct is taken apart field by field: one that is added in the core does not compile without a decision here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::{DeviceUuid, GangKey, Namespace};
use muster_core::interpod::InterPodRule;
use muster_core::inventory::{Device, DeviceHealth, NodeReport, ReportOrder};
use muster_core::ledger::{Holder, Holding, SlotKey};
use muster_core::node::{
    HostPort, Node, Requirement, SelectorOperator, SelectorTerm, Taint, Toleration,
    TolerationOperator,
};
use muster_core::plan::{GangRequest, RoleRequest, Standing};
use muster_core::pod::PodShape;
use muster_core::snapshot::Usual;
use muster_core::state::{
    Ask, BeliefState, GangState, NodeState, PlanState, SlotState, State, Why,
};

use crate::form::shapes_of;

type Text = Arc<str>;
type Texts = BTreeMap<Text, Text>;

/// Roles of PyTorchJobs: they tell nothing, and a plan is hard to read without them.
const ROLES: [&str; 2] = ["Master", "Worker"];

/// Every address, in a host port.
const ANY_ADDRESS: &str = "0.0.0.0";

/// The state with other names. `hash` is to be the same for the same name, and to tell nothing of it to whoever lacks its key.
pub fn redact(state: &State, hash: &dyn Fn(&str) -> String) -> State {
    let numbers = compared_numbers(state);
    let mut names: BTreeSet<Text> = BTreeSet::new();
    let mut collect = |name: &str| {
        let name: Text = Arc::from(name);
        names.insert(Arc::clone(&name));
        name
    };
    // What it returns is the state itself.
    drop(Scribe::new(&mut collect).state(state));
    let width = names.len().to_string().len();
    let turned: BTreeMap<Text, Text> = names
        .into_iter()
        .enumerate()
        .map(|(rank, name)| {
            let other = match &*name {
                "" => Text::default(),
                number if numbers.contains(number) => Arc::clone(&name),
                role if ROLES.contains(&role) => Arc::from(format!("r{rank:0width$}-{role}")),
                name => Arc::from(format!("r{rank:0width$}-{}", hash(name))),
            };
            (name, other)
        })
        .collect();
    // Both walks meet the same names.
    let mut turn = |name: &str| turned.get(name).cloned().unwrap_or_default();
    Scribe::new(&mut turn).state(state)
}

/// Values of labels that somebody compares as numbers.
fn compared_numbers(state: &State) -> BTreeSet<Text> {
    let shapes = shapes_of(state);
    let terms = shapes
        .iter()
        .flat_map(|shape| shape.required_affinity.iter().flatten());
    let keys: BTreeSet<&Text> = terms
        .flat_map(|term| &term.expressions)
        .filter(|asked| {
            matches!(
                asked.operator,
                SelectorOperator::Gt(_) | SelectorOperator::Lt(_)
            )
        })
        .map(|asked| &asked.key)
        .collect();
    let nodes = state.nodes.iter().filter_map(|node| node.node.as_ref());
    nodes
        .flat_map(|node| &node.labels)
        .filter(|(key, value)| keys.contains(key) && value.parse::<i64>().is_ok())
        .map(|(_, value)| Arc::clone(value))
        .collect()
}

/// Writes a state anew, with each name turned.
struct Scribe<'a> {
    turn: &'a mut dyn FnMut(&str) -> Text,
    /// Many pods share one.
    shapes: BTreeMap<Arc<PodShape>, Arc<PodShape>>,
}

impl<'a> Scribe<'a> {
    fn new(turn: &'a mut dyn FnMut(&str) -> Text) -> Self {
        Self {
            turn,
            shapes: BTreeMap::new(),
        }
    }

    fn text(&mut self, name: &str) -> Text {
        (self.turn)(name)
    }

    fn id<T: for<'t> From<&'t str>>(&mut self, name: &str) -> T {
        T::from(&*self.text(name))
    }

    fn devices(&mut self, uuids: &[DeviceUuid]) -> Vec<DeviceUuid> {
        uuids.iter().map(|uuid| self.id(uuid.as_str())).collect()
    }

    /// The keys stay.
    fn values(&mut self, texts: &Texts) -> Texts {
        texts
            .iter()
            .map(|(key, value)| (Arc::clone(key), self.text(value)))
            .collect()
    }

    fn state(&mut self, state: &State) -> State {
        let State {
            at,
            config,
            epoch,
            leads,
            synced,
            demand,
            nodes,
            gangs,
        } = state;
        State {
            at: *at,
            config: config.clone(),
            epoch: *epoch,
            leads: *leads,
            synced: *synced,
            demand: demand.iter().map(|usual| self.usual(usual)).collect(),
            nodes: nodes.iter().map(|node| self.node_state(node)).collect(),
            gangs: gangs.iter().map(|gang| self.gang(gang)).collect(),
        }
    }

    fn usual(&mut self, usual: &Usual) -> Usual {
        let Usual {
            shape,
            members,
            weight,
        } = usual;
        Usual {
            shape: self.shape(shape),
            members: *members,
            weight: *weight,
        }
    }

    fn node_state(&mut self, state: &NodeState) -> NodeState {
        let NodeState {
            name,
            node,
            belief,
            holdings,
        } = state;
        NodeState {
            name: self.id(name.as_str()),
            node: node.as_ref().map(|node| Arc::new(self.node(node))),
            belief: belief.as_ref().map(|belief| self.belief(belief)),
            holdings: holdings
                .iter()
                .map(|holding| self.holding(holding))
                .collect(),
        }
    }

    fn node(&mut self, node: &Node) -> Node {
        let Node {
            name,
            uid,
            boot_id,
            labels,
            taints,
            unschedulable,
            ready,
            terminating,
            allocatable,
        } = node;
        Node {
            name: self.id(name.as_str()),
            uid: self.text(uid),
            boot_id: boot_id.as_ref().map(|boot| self.text(boot)),
            labels: self.values(labels),
            taints: taints.iter().map(|taint| self.taint(taint)).collect(),
            unschedulable: *unschedulable,
            ready: *ready,
            terminating: *terminating,
            allocatable: allocatable.clone(),
        }
    }

    fn taint(&mut self, taint: &Taint) -> Taint {
        let Taint { key, value, effect } = taint;
        Taint {
            key: Arc::clone(key),
            value: self.text(value),
            effect: *effect,
        }
    }

    fn belief(&mut self, belief: &BeliefState) -> BeliefState {
        let BeliefState {
            report,
            heard,
            node_uid,
        } = belief;
        let NodeReport {
            node,
            order,
            sampler_ok,
            holders_known,
            devices,
            fabric_clique,
            links,
        } = report;
        let ReportOrder {
            boot,
            instance,
            generation,
        } = order;
        BeliefState {
            report: NodeReport {
                node: self.id(node.as_str()),
                order: ReportOrder {
                    boot: self.text(boot),
                    instance: *instance,
                    generation: *generation,
                },
                sampler_ok: *sampler_ok,
                holders_known: *holders_known,
                devices: devices.iter().map(|device| self.device(device)).collect(),
                fabric_clique: fabric_clique.as_ref().map(|clique| self.text(clique)),
                links: links.clone(),
            },
            heard: *heard,
            node_uid: node_uid.as_ref().map(|uid| self.text(uid)),
        }
    }

    fn device(&mut self, device: &Device) -> Device {
        let Device {
            uuid,
            resource,
            health,
            leaked,
            holders,
            model,
            index,
            numa,
            parent,
            memory_bytes,
        } = device;
        // Causes are words of the agents' own table.
        let health = match health {
            DeviceHealth::Healthy => DeviceHealth::Healthy,
            DeviceHealth::Suspect(cause) => DeviceHealth::Suspect(Arc::clone(cause)),
            DeviceHealth::Unhealthy(cause) => DeviceHealth::Unhealthy(Arc::clone(cause)),
            DeviceHealth::Lost(cause) => DeviceHealth::Lost(Arc::clone(cause)),
        };
        Device {
            uuid: self.id(uuid.as_str()),
            resource: resource.clone(),
            health,
            leaked: *leaked,
            holders: holders
                .iter()
                .map(|(namespace, name)| (self.id(namespace.as_str()), self.text(name)))
                .collect(),
            model: model.clone(),
            index: *index,
            numa: *numa,
            parent: parent.as_ref().map(|uuid| self.id(uuid.as_str())),
            memory_bytes: *memory_bytes,
        }
    }

    fn holding(&mut self, holding: &Holding) -> Holding {
        let Holding {
            holder,
            shape,
            devices,
        } = holding;
        let holder = match holder {
            Holder::Pod {
                uid,
                namespace,
                name,
            } => Holder::Pod {
                uid: self.id(uid.as_str()),
                namespace: self.id(namespace.as_str()),
                name: self.text(name),
            },
            Holder::Slot(SlotKey { gang, role, index }) => Holder::Slot(SlotKey {
                gang: self.key(gang),
                role: self.id(role.as_str()),
                index: *index,
            }),
        };
        Holding {
            holder,
            shape: self.shape(shape),
            devices: self.devices(devices),
        }
    }

    fn key(&mut self, key: &GangKey) -> GangKey {
        let GangKey { namespace, uid } = key;
        GangKey {
            namespace: self.id::<Namespace>(namespace.as_str()),
            uid: self.text(uid),
        }
    }
}

/// What pods ask for.
impl Scribe<'_> {
    fn shape(&mut self, shape: &Arc<PodShape>) -> Arc<PodShape> {
        if let Some(known) = self.shapes.get(shape) {
            return Arc::clone(known);
        }
        let PodShape {
            requests,
            share,
            node_selector,
            required_affinity,
            tolerations,
            host_ports,
            between_pods,
        } = &**shape;
        let turned = Arc::new(PodShape {
            requests: requests.clone(),
            share: share.clone(),
            node_selector: self.values(node_selector),
            required_affinity: required_affinity
                .as_ref()
                .map(|terms| terms.iter().map(|term| self.term(term)).collect()),
            tolerations: tolerations
                .iter()
                .map(|toleration| self.toleration(toleration))
                .collect(),
            host_ports: host_ports.iter().map(|port| self.host_port(port)).collect(),
            between_pods: between_pods.iter().map(|rule| self.rule(rule)).collect(),
        });
        self.shapes.insert(Arc::clone(shape), Arc::clone(&turned));
        turned
    }

    fn term(&mut self, term: &SelectorTerm) -> SelectorTerm {
        let SelectorTerm {
            expressions,
            fields,
        } = term;
        SelectorTerm {
            expressions: expressions
                .iter()
                .map(|asked| self.requirement(asked))
                .collect(),
            fields: fields.iter().map(|asked| self.requirement(asked)).collect(),
        }
    }

    fn requirement(&mut self, requirement: &Requirement) -> Requirement {
        let Requirement { key, operator } = requirement;
        let mut set = |values: &BTreeSet<Text>| -> BTreeSet<Text> {
            values.iter().map(|value| self.text(value)).collect()
        };
        Requirement {
            key: Arc::clone(key),
            operator: match operator {
                SelectorOperator::In(values) => SelectorOperator::In(set(values)),
                SelectorOperator::NotIn(values) => SelectorOperator::NotIn(set(values)),
                SelectorOperator::Exists => SelectorOperator::Exists,
                SelectorOperator::DoesNotExist => SelectorOperator::DoesNotExist,
                SelectorOperator::Gt(bound) => SelectorOperator::Gt(*bound),
                SelectorOperator::Lt(bound) => SelectorOperator::Lt(*bound),
            },
        }
    }

    fn toleration(&mut self, toleration: &Toleration) -> Toleration {
        let Toleration {
            key,
            operator,
            effect,
        } = toleration;
        Toleration {
            key: key.clone(),
            operator: match operator {
                TolerationOperator::Exists => TolerationOperator::Exists,
                TolerationOperator::Equal(value) => TolerationOperator::Equal(self.text(value)),
            },
            effect: *effect,
        }
    }

    fn host_port(&mut self, host_port: &HostPort) -> HostPort {
        let HostPort {
            protocol,
            address,
            port,
        } = host_port;
        HostPort {
            protocol: Arc::clone(protocol),
            address: match &**address {
                ANY_ADDRESS => Arc::clone(address),
                one => self.text(one),
            },
            port: *port,
        }
    }

    fn rule(&mut self, rule: &InterPodRule) -> InterPodRule {
        let InterPodRule {
            kind,
            topology,
            selector,
        } = rule;
        InterPodRule {
            kind: kind.clone(),
            topology: Arc::clone(topology),
            selector: selector
                .iter()
                .map(|asked| self.requirement(asked))
                .collect(),
        }
    }
}

/// Gangs.
impl Scribe<'_> {
    fn gang(&mut self, gang: &GangState) -> GangState {
        let GangState {
            key,
            kind,
            name,
            object,
            phase,
            why,
            priority,
            created_seconds,
            sequence,
            rests_until,
            plan,
            asks,
        } = gang;
        GangState {
            key: self.key(key),
            kind: *kind,
            name: self.text(name),
            object: self.text(object),
            phase: *phase,
            why: why.as_ref().map(|Why { code, text }| Why {
                code: Arc::clone(code),
                text: self.text(text),
            }),
            priority: *priority,
            created_seconds: *created_seconds,
            sequence: *sequence,
            rests_until: *rests_until,
            plan: plan.as_ref().map(|plan| self.plan(plan)),
            asks: asks.iter().map(|ask| self.ask(ask)).collect(),
        }
    }

    fn plan(&mut self, plan: &PlanState) -> PlanState {
        let PlanState {
            id,
            minimum,
            durable,
            slots,
            asked,
        } = plan;
        PlanState {
            id: id.clone(),
            minimum: *minimum,
            durable: *durable,
            slots: slots.iter().map(|slot| self.slot(slot)).collect(),
            asked: asked.as_ref().map(|ask| self.ask(ask)),
        }
    }

    fn slot(&mut self, slot: &SlotState) -> SlotState {
        let SlotState {
            role,
            index,
            node,
            devices,
            pod,
            bound,
        } = slot;
        SlotState {
            role: self.id(role.as_str()),
            index: *index,
            node: node.as_ref().map(|node| self.id(node.as_str())),
            devices: self.devices(devices),
            pod: pod.as_ref().map(|uid| self.id(uid.as_str())),
            bound: *bound,
        }
    }

    fn ask(&mut self, ask: &Ask) -> Ask {
        let Ask { request, spare } = ask;
        let GangRequest {
            roles,
            placed,
            avoid,
            topology,
        } = request;
        Ask {
            request: GangRequest {
                roles: roles.iter().map(|role| self.role(role)).collect(),
                placed: placed.iter().map(|member| self.standing(member)).collect(),
                avoid: avoid.iter().map(|node| self.id(node.as_str())).collect(),
                topology: topology.clone(),
            },
            spare: *spare,
        }
    }

    fn role(&mut self, role: &RoleRequest) -> RoleRequest {
        let RoleRequest {
            role,
            indices,
            shape,
            labels,
            segments,
        } = role;
        RoleRequest {
            role: self.id(role.as_str()),
            indices: indices.clone(),
            shape: self.shape(shape),
            labels: Arc::new(self.values(labels)),
            segments: segments.clone(),
        }
    }

    fn standing(&mut self, member: &Standing) -> Standing {
        let Standing {
            node,
            shape,
            labels,
            segment,
        } = member;
        Standing {
            node: self.id(node.as_str()),
            shape: self.shape(shape),
            labels: Arc::new(self.values(labels)),
            segment: *segment,
        }
    }
}
