// Threads for benches: each is the processor of its number.
//
// A thread becomes a processor of a simulated machine by the index in its own words. `SimulatedMachine` also makes a
// thread poll for requests wherever interrupts are switched on again. A test needs that; a measured loop must not
// have it.

import CPlatform
import Foundation
import Synchronization

enum BenchThreads {
  private final class Start: Sendable {
    let arrived = Atomic<Int>(0)
  }

  /// Runs `body` on `count` threads at once and answers the nanoseconds from the common start until the last has ended.
  static func time(_ count: Int, _ body: @escaping (Int) -> Void) -> Double {
    let spans = UnsafeMutableBufferPointer<(start: UInt64, end: UInt64)>.allocate(capacity: count)
    defer { spans.deallocate() }
    // Each thread writes an element of its own, and all have ended when the elements are read.
    nonisolated(unsafe) let (places, body) = (spans, body)
    let start = Start()
    let group = DispatchGroup()
    for index in 0..<count {
      group.enter()
      let thread = Thread {
        cp_processor().pointee.index = UInt32(index)
        start.arrived.add(1, ordering: .sequentiallyConsistent)
        var spins: UInt32 = 0
        while start.arrived.load(ordering: .acquiring) < count {
          cp_pause(spins)
          spins &+= 1
        }
        let began = DispatchTime.now().uptimeNanoseconds
        body(index)
        places[index] = (began, DispatchTime.now().uptimeNanoseconds)
        group.leave()
      }
      thread.start()
    }
    group.wait()
    return Double(spans.map(\.end).max()! - spans.map(\.start).min()!)
  }
}
