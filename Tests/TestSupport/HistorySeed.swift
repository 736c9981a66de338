// The seeds of the histories of tests, printed before they run, so that one that ends in a crash can be repeated.

import Foundation

/// The seed of a random history: STRATA_SEED, or the test's own. Prints it.
package func historySeed(_ own: UInt64, _ test: String = #function) -> UInt64 {
  let seed = ProcessInfo.processInfo.environment["STRATA_SEED"].flatMap { UInt64($0) } ?? own
  print("\(test): STRATA_SEED=\(seed)")
  return seed
}

/// The seeds of `count` histories that run one after the other, from `historySeed(own)` on. A history that fails
/// prints its own seed, which STRATA_SEED then makes the first.
package func historySeeds(_ own: UInt64, count: Int, _ test: String = #function) -> [UInt64] {
  let first = historySeed(own, test)
  return (0..<count).map { first &+ UInt64($0) }
}
