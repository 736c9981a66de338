// The workloads that are measured through kmem and through malloc alike.

import ArgumentParser
import Workloads

/// A pattern of allocations, the same for every allocator.
enum ObjectWorkload: String, CaseIterable, ExpressibleByArgument {
  case pair16, pair64, pair128, pair1024, pair4096
  case variable16, variable64, variable128, variable1024, variable4096
  case batches, randomOne, randomSmall, randomMixed, randomMany
  case trace, passedOn

  /// The row of its time.
  var budget: Budget {
    switch self {
    case .pair16: .kmemPair16
    case .pair64: .kmemPair64
    case .pair128: .kmemPair128
    case .pair1024: .kmemPair1024
    case .pair4096: .kmemPair4096
    case .variable16: .kmemVariable16
    case .variable64: .kmemVariable64
    case .variable128: .kmemVariable128
    case .variable1024: .kmemVariable1024
    case .variable4096: .kmemVariable4096
    case .batches: .kmemBatches
    case .randomOne: .kmemRandomOne
    case .randomSmall: .kmemRandomSmall
    case .randomMixed: .kmemRandomMixed
    case .randomMany: .kmemRandomMany
    case .trace: .kmemTraceTime
    case .passedOn: .kmemPassedOn
    }
  }

  /// The count of turns of each allocator.
  var turns: Int { self == .trace ? 5 : 21 }
}
