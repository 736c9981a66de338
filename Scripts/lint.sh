#!/usr/bin/env bash
# The style of the house, checked: swift-format for Swift, and what it does not look at.
set -eu
cd "$(dirname "$0")/.."

swift format lint --strict --parallel --recursive Sources Tests Package.swift
if git grep -nIE '[[:blank:]]+$' -- ':!*.trace' ':!LICENSE'; then
  echo "Blanks at the end of a line."
  exit 1
fi
if git ls-files | grep -E '(^|/)(\.build|build)/|Package\.resolved|\.(o|elf|iso)$'; then
  echo "A generated file is in git."
  exit 1
fi
echo "Clean."
