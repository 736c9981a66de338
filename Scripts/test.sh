#!/usr/bin/env bash
# Runs every test of the package, host tests and boots alike, and closes with "N passed, N failed".
#
# The tests are built with optimisation and with assertions. FILTER picks some (a regular expression, as
# `swift test --filter` takes it); STRATA_SEED replays the seed that a failed test printed.
set -u
cd "$(dirname "$0")/.."

flags=(-Xswiftc -O -Xswiftc -assert-config -Xswiftc Debug --scratch-path .build-test)
log=build/test.log
mkdir -p build

swift build --build-tests "${flags[@]}" || { echo "The tests did not build."; echo "0 passed, 1 failed"; exit 1; }
swift test --skip-build --disable-swift-testing "${flags[@]}" ${FILTER:+--filter "$FILTER"} 2>&1 |
  tee "$log" | grep --line-buffered -vE "^Test Case .* (started|passed)|^Test Suite .* started" || true
status=${PIPESTATUS[0]}

passed=$(grep -cE "^Test Case .* passed" "$log")
failed=$(grep -cE "^Test Case .* failed" "$log")
# A process that died took its test with it, without a word.
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
