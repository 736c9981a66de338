// Random requests of one of several threads.

import MemoryPrimitives
import PhysicalMemory
import Workloads
import XCTest

/// Random requests; each frame is stamped when taken and checked when freed.
package func hammer(
  _ memory: FrameAllocator, _ seed: UInt64, _ operations: Int, _ priority: AllocationPriority
) {
  var random = SeededRandom(seed: seed)
  var given: [FrameRun] = []
  let map = memory.machine.directMap
  func drop(_ run: FrameRun) {
    for i in 0..<run.count.rawValue {
      let frame = run.first + PageCount(i)
      let word = map.pointer(to: frame).load(as: UInt64.self)
      if word != UInt64(frame.rawValue) ^ seed { XCTFail("a frame was given to two") }
    }
    memory.free(run)
  }
  for _ in 0..<operations {
    if random.oneIn(2) || given.isEmpty {
      let run: FrameRun?
      if random.oneIn(4) {
        run = try? memory.allocate(
          run: PageCount(1 + random.below(random.oneIn(10) ? 1500 : 20)),
          where: RunConstraints(alignment: Alignment(4096 << random.below(4))!), role: .contiguous,
          priority: priority)
      } else {
        let order = BlockOrder(UInt8(random.below(random.oneIn(10) ? 11 : 3)))
        run = (try? memory.allocate(order, role: .slab, priority: priority)).map {
          FrameRun(first: $0, count: order.frames)
        }
      }
      guard let run else { continue }
      for i in 0..<run.count.rawValue {
        let frame = run.first + PageCount(i)
        map.pointer(to: frame).storeBytes(of: UInt64(frame.rawValue) ^ seed, as: UInt64.self)
      }
      given.append(run)
    } else {
      let k = Int(random.below(UInt64(given.count)))
      drop(given[k])
      given[k] = given[given.count - 1]
      given.removeLast()
    }
  }
  for run in given { drop(run) }
}
