#!/usr/bin/env python3
"""rewrite_device_code.py ROOT OUTPUT DEPFILE HEADER...: device code that a host compiler can build.

Copies the headers, and what they include of this project, from ROOT to OUTPUT. Two things change:

  asm statements          become calls emulator::NAME(operands), outputs first
  __shared__ variables    become references to memory of the emulated block

OUTPUT/rewritten is touched at the end; DEPFILE says which files it depends on. An instruction that
is in neither of the tables below is an error.
"""

import os
import re
import sys

# What an instruction looks like, and the function of the emulator that stands for it. None: nothing
# that the emulator models.
INSTRUCTIONS = [
    (r"^$", None),
    (r"^bar\.sync ", "bar_sync"),
    (r"^st\.relaxed\.gpu\.global\.u64 ", "store_flagged"),
    (r"^ld\.relaxed\.gpu\.global\.v2\.u64 ", "load_flagged_pair"),
    (r"^ld\.relaxed\.gpu\.global\.u64 ", "load_flagged"),
    (r"^atom\.acq_rel\.gpu\.global\.add\.u32 %0, \[%1\], 1;", "count_up_global"),
    (r"^atom\.acq_rel\.cta\.shared\.add\.s32 %0, \[%1\], 1;", "count_up_shared"),
    (r"^ld\.global\.nc\.(f32|u16) ", "load_constant"),
    (r"^setp\.ne\.b32 wanted, %5, 0; @wanted ld\.shared\.v4\.u32 ", "load_shared_if"),
    (r"^ld\.shared\.v4\.[uf]32 ", "load_shared"),
    (r"^mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32 ", "mma_s8"),
    (r"^mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.f16\.f16\.f32 ", "mma_f16"),
    (r"^mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.bf16\.bf16\.f32 ", "mma_bf16"),
    (r"^mbarrier\.init\.", "mbarrier_init"),
    (r"^mbarrier\.arrive\.expect_tx\.", "mbarrier_arrive_expect"),
    (r"^mbarrier\.arrive\.shared", "mbarrier_arrive"),
    (r"^again: mbarrier\.try_wait\.parity\.", "mbarrier_wait"),
    (r"^mbarrier\.try_wait\.parity\.shared\.b64 p, \[%1\], %2, %3;", "mbarrier_wait_for"),
    (r"^cp\.async\.bulk\.shared::cluster\.global\.", "bulk_copy"),
    (r"^createpolicy\.", "evict_first_policy"),
    (r"^cp\.async\.cg\.shared\.global \[%0\], \[%1\], 16, %2;", "async_copy"),
    (r"^cp\.async\.commit_group;", "async_copy_commit"),
    (r"^cp\.async\.wait_group ", "async_copy_wait"),
    (r"^ex2\.approx\.ftz\.f32 ", "exp2_approximate"),
    (r"^shr\.u32 %0, %1, 16;", "upper_half"),
    (r"^fence\.(mbarrier_init|proxy\.async)", None),
    (r"^cp\.async\.bulk\.prefetch\.L2\.global ", "bulk_prefetch"),
    (r"^prefetch\.", None),
]

# In headers that the token kernel includes, but not in what it calls: a fault where it is reached.
UNREACHED = [
    r"^bar\.arrive ",
    r"^cp\.async\.ca\.",
    r"^setp\.ne\.b32 active, %3, 0; @active cp\.async\.",
    r"^(fma|sub|max)\.",
    r"^griddepcontrol\.",
    r"^ld\.(acquire|global\.(nc\.L1|v4))",
    r"^ldmatrix\.",
    r"^mapa\.",
    r"^mbarrier\.(test|try)_wait\.",
    r"^mov\.",
    r"^setmaxnreg\.",
    r"^st\.(release|shared)\.",
]

ASM = re.compile(r"\b(?:asm(?:\s+volatile)?|WATERWEIGHT_SM90_ASM_)\s*\(")
STRING = r'"((?:[^"\\]|\\.)*)"'
DYNAMIC_SHARED = re.compile(r"extern __shared__ __align__\(\d+\) std::byte (\w+)\[\];")
SHARED = re.compile(r"__shared__ (?:__align__\((\d+)\) )?((?:typename )?[\w:<>, ]+?) (\w+)(\[[^\]]*\])?;")
INCLUDE = re.compile(r'^#include [<"]((?:waterweight|examples)/[^>"]+)[>"]', re.MULTILINE)


def split(text, separator):
    """The pieces of text between separators that are in no brackets and no string."""
    pieces, start, depth = [], 0, 0
    for token in re.finditer(STRING + r"|[][(){}]|" + separator, text):
        if token.group() in "([{":
            depth += 1
        elif token.group() in ")]}":
            depth -= 1
        elif token.group() == separator and depth == 0:
            pieces.append(text[start : token.start()])
            start = token.end()
    return pieces + [text[start:]]


def end_of_brackets(text, start):
    """Behind the bracket that closes the one at start."""
    depth = 0
    for token in re.compile(STRING + r"|[()]").finditer(text, start):
        depth += {"(": 1, ")": -1}.get(token.group(), 0)
        if depth == 0:
            return token.end()
    raise SystemExit("unbalanced brackets")


def instruction_of(template):
    text = "".join(re.findall(STRING, template)).replace("\\n", " ").replace("\\t", " ")
    text = re.sub(r"\.reg[^;]*;", "", text.strip().lstrip("{"))
    return " ".join(text.split())


def call(statement, path):
    """What stands for an asm statement, given between its brackets."""
    sections = split(statement, ":")
    instruction = instruction_of(sections[0])
    operands = [o.strip() for section in sections[1:3] for o in split(section, ",") if o.strip()]
    for pattern, name in INSTRUCTIONS:
        if re.search(pattern, instruction):
            if name is None:
                return "static_cast<void>(0)"
            values = [operand[operand.index("(") :] for operand in operands]
            return f"emulator::{name}({', '.join(values)})"
    for pattern in UNREACHED:
        if re.search(pattern, instruction):
            return f'emulator::fault("{instruction.split()[0]} is not emulated")'
    raise SystemExit(f"{path}: the emulator does not know the instruction '{instruction}'")


def shared_reference(match, path):
    alignment, type_name, name, extent = match.groups(default="")
    if int(alignment or 0) > 16:
        raise SystemExit(f"{path}: shared variable {name} is aligned to more than 16")
    return f"auto& {name} = emulator::shared<emulator::Same<{type_name}>{extent}>([] {{}});"


def rewrite(text, path):
    # A macro that is itself an asm statement: its uses are rewritten.
    text = re.sub(r"^#define WATERWEIGHT_SM90_ASM_.*$", "", text, flags=re.MULTILINE)
    out, position = "", 0
    while match := ASM.search(text, position):
        end = end_of_brackets(text, match.end() - 1)
        out += text[position : match.start()] + call(text[match.end() : end - 1], path)
        position = end
    text = out + text[position:]
    text = DYNAMIC_SHARED.sub(r"std::byte* const \1 = emulator::dynamic_shared();", text)
    return SHARED.sub(lambda match: shared_reference(match, path), text)


def main():
    root, output, depfile, *paths = sys.argv[1:]
    sources = []
    for path in paths:  # grows as includes are found
        source = os.path.join(root, "include" if path.startswith("waterweight/") else "", path)
        sources.append(source)
        with open(source, encoding="utf-8") as file:
            text = file.read()
        paths += [p for p in dict.fromkeys(INCLUDE.findall(text)) if p not in paths]
        target = os.path.join(output, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="utf-8") as file:
            # Warnings are for the original to give.
            file.write("#pragma GCC system_header\n" + rewrite(text, path))
    stamp = os.path.join(output, "rewritten")
    with open(stamp, "w", encoding="utf-8"):
        pass
    with open(depfile, "w", encoding="utf-8") as file:
        file.write(f"{stamp}: {' '.join(sources)}\n")


if __name__ == "__main__":
    main()
