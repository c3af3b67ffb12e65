from types import SimpleNamespace

all_samplers = [SimpleNamespace(name="Euler a")]


def visible_sampler_names():
    return [sampler.name for sampler in all_samplers]
