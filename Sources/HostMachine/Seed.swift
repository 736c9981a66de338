// Where the histories of tests get their seeds: told before they run, so that one which ends in a crash can
// be run again too.

import Foundation

/// The seed of a random history: STRATA_SEED, or the test's own. Says so on the test's output.
public func historySeed(_ own: UInt64, _ test: String = #function) -> UInt64 {
  let seed = ProcessInfo.processInfo.environment["STRATA_SEED"].flatMap { UInt64($0) } ?? own
  print("\(test): STRATA_SEED=\(seed)")
  return seed
}
