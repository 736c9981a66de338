# Strata: build the kernel, pack it into an ISO, boot it. `make help` lists the targets.

# Variables that a person sets. ARGS is taken as typed: a dollar, a quote or a semicolon means itself.
override export ARGS := $(value ARGS)
export MEM ?= 256M
export CPUS ?= 1
export KERNEL ?= grub
export TRACE ?= $(wildcard Traces/linux-6.1-sample.trace)
export SWAP ?= 64M
export QEMUFLAGS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: run test tsan asan fuzz fuzz-lz4 bench kernel iso lint format clean help examples docs debug variables tools compiler

stubs := $(patsubst boot/%.asm,build/%.o,$(wildcard boot/*.asm))

run: variables tools
	@$(MAKE) --no-print-directory kernel
	@Scripts/run

# A variable that is wrong is named before anything is built.
variables:
	@Scripts/run --check

# QEMU waits, and gdb attaches, with commands of Strata's own.
debug: variables
	@Scripts/install-tools debug
	@$(MAKE) --no-print-directory kernel
	@Scripts/debug

# FILTER picks tests by a regular expression, STRATA_SEED replays a seed.
test:
	@Scripts/install-tools test
	@$(MAKE) --no-print-directory kernel
	@Scripts/test

# The packages in Examples, built and run.
examples: tools
	@$(MAKE) --no-print-directory kernel
	@Scripts/examples

# The reference, as a DocC site.
docs: compiler
	@Scripts/docs

# The tests of state that several processors share, under the thread sanitizer.
tsan: tools
	@Scripts/tsan

# The host tests under the address sanitizer.
asan: compiler
	@Scripts/asan

# Random histories of pageable memory, a seed after the other, with optimisation and assertions.
export SEEDS ?= 2000
fuzz: compiler
	@swift build -Xswiftc -O -Xswiftc -assert-config -Xswiftc Debug --scratch-path .build-test --product strata
	@.build-test/debug/strata fuzz --seeds "$(SEEDS)"

# The LZ4 codec, fuzzed by libFuzzer for so many seconds.
export DURATION ?= 300
fuzz-lz4: compiler
	@Scripts/fuzz-lz4 "$(DURATION)"

# The budgets, measured. JSON=1 gives rows of JSON, and nothing else.
export JSON ?=
bench:
	@{ Scripts/install-tools bench; $(MAKE) --no-print-directory kernel; \
	  swift build -c release --product strata; } >&2
	@Scripts/bench

lint: compiler
	@Scripts/lint

format: compiler
	@swift format --in-place --parallel --recursive Sources Tests Examples Package.swift

# One build at a time: two runs at once would link into the same files.
kernel: compiler | build
	@flock build/kernel.lock $(MAKE) --no-print-directory build/strata

iso: variables kernel
	@Scripts/iso build/strata.iso build/strata

# SwiftPM decides which objects are up to date; the link follows when an object is newer.
.PHONY: objects
objects:
	@Scripts/compile

build/strata: objects $(stubs) linker.ld Scripts/link Scripts/symbols
	@Scripts/link $@ $(stubs)

build/%.o: boot/%.asm | build
	@nasm -f elf64 -Wall -Werror -o $@ $<

build:
	@mkdir -p $@

# The tools that a run needs beyond the Swift toolchain; installs missing ones.
tools:
	@Scripts/install-tools

# The tools that a build needs.
compiler:
	@Scripts/install-tools compiler

clean:
	@rm -rf build .build .build-*

help:
	@sed -n 's/^#: \{0,1\}//p' Makefile

#: make run      build, boot in QEMU, console on this terminal; Ctrl-A X leaves
#:               (without a terminal: the tour, or the run= in ARGS, then power off)
#: make debug    the same under gdb: the machine waits; help strata lists gdb's new commands
#: make test     every test, on the host and in QEMU; ends with "N passed, N failed",
#:               and with the names of tests that were skipped before that
#: make examples a program and a small kernel that use Strata, built and run
#: make tsan     the tests of shared state, under the thread sanitizer
#: make asan     the host tests, under the address sanitizer
#: make fuzz     random histories of pageable memory, SEEDS=2000 of them
#: make fuzz-lz4 the LZ4 codec under libFuzzer, for DURATION=300 seconds
#: make bench    the budgets, measured: figure and goal, met or missed (JSON=1: rows of JSON)
#: make docs     the reference as a web site in build/docs; fails on a declaration without text
#: make lint     checks the style; make format corrects most findings
#: make kernel   build/strata, an ELF for multiboot2 and PVH; build/strata.debug for gdb
#: make iso      build/strata.iso, which boots by GRUB
#: make clean    remove everything that was built
#:
#: ARGS='run="memmap; frames"'   kernel command line
#: MEM=256M CPUS=1               the machine, as Strata has it
#: KERNEL=grub|pvh               boot the ISO, or the ELF directly
#: TRACE=FILE                    packed trace for replay, as boot module
#: SWAP=64M                      and so much more memory, for a RAM disk to swap to; 0: none
#: FILTER=NAME STRATA_SEED=n     only these tests; with this seed
#: QEMUFLAGS=...                 more flags for QEMU
