// A random order that is the same on every machine and with every compiler.

import Workloads

/// The numbers below `count` in the order that `seed` gives: R. Durstenfeld, Algorithm 235, CACM 7(7), 1964.
func permutation(of count: Int, seed: UInt64) -> [Int] {
  var random = SeededRandom(seed: seed)
  var numbers = Array(0..<count)
  for last in numbers.indices.dropFirst().reversed() {
    numbers.swapAt(last, Int(random.below(UInt64(last + 1))))
  }
  return numbers
}
