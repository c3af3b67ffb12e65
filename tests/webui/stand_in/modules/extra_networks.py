extra_network_registry = {}


class ExtraNetworkParams:
    def __init__(self, items=None):
        self.items = items or []
        self.positional = list(self.items)
        self.named = {}


class ExtraNetwork:
    def __init__(self, name):
        self.name = name


def register_extra_network(extra_network):
    extra_network_registry[extra_network.name] = extra_network


def activate(p, extra_network_data):
    for name, network in extra_network_registry.items():
        network.activate(p, extra_network_data.get(name, []))


def deactivate(p, extra_network_data):
    for network in extra_network_registry.values():
        network.deactivate(p)
