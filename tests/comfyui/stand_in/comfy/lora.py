"""Files of LoRAs, as patches by the names of the weights."""


def load_lora(lora, to_load):
    patches = {}
    for name, weight in to_load.items():
        if f"{name}.lora_up.weight" in lora:
            patches[weight] = ("lora", lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"])
        elif f"{name}.diff" in lora:
            patches[weight] = ("diff", lora[f"{name}.diff"])
    return patches
