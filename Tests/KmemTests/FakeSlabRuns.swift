// A stand-in for the layer of contiguous memory: free runs, and runs that obstacles of the test's leave when a request
// may wait.

import HostMachine
import MemoryPrimitives
import PageTables
import TestSupport
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class FakeSlabRuns {
  private let physical: FrameAllocator
  private let machine: Machine
  private let lock = NSLock()
  /// Frames that stand in the way, until a request may wait.
  var obstacles: [FrameNumber] = []
  /// A run that is answered whatever is requested.
  var wrongRun: FrameRun?
  private(set) var requests: [SlabRunRequest] = []
  /// The attributes of the runs that slabs have, by their first frame.
  private(set) var live: [UInt32: CacheAttribute] = [:]

  init(_ physical: FrameAllocator, _ machine: Machine) {
    self.physical = physical
    self.machine = machine
  }

  var table: SlabRuns {
    SlabRuns(
      Unmanaged.passUnretained(self).toOpaque(),
      allocateRun: { context, request in
        let me = Unmanaged<FakeSlabRuns>.fromOpaque(context!).takeUnretainedValue()
        return me.allocate(request.load(as: SlabRunRequest.self)).rawValue
      },
      freeRun: { context, first, count, attribute in
        let me = Unmanaged<FakeSlabRuns>.fromOpaque(context!).takeUnretainedValue()
        let known = me.lock.withLock { me.live.removeValue(forKey: first) }
        XCTAssertEqual(known?.rawValue, attribute, "a run was freed with another attribute than it had")
        me.physical.free(FrameRun(first: FrameNumber(first), count: PageCount(UInt64(count))))
      })
  }

  private func allocate(_ request: SlabRunRequest) -> FrameNumber {
    lock.withLock { requests.append(request) }
    if machine.failsHere(.contiguous) { return .none }
    if let wrongRun { return wrongRun.first }
    var found = run(request)
    if found == nil && request.mayWait {
      let inTheWay = lock.withLock {
        defer { obstacles = [] }
        return obstacles
      }
      for frame in inTheWay { physical.free(frame, BlockOrder(0)) }
      found = run(request)
    }
    guard let found else { return .none }
    lock.withLock { live[found.first.rawValue] = request.attribute }
    return found.first
  }

  private func run(_ request: SlabRunRequest) -> FrameRun? {
    try? physical.allocateUnlogged(
      run: request.count, where: request.constraints, role: .slab, priority: request.priority,
      for: request.owner)
  }
}

extension KmemFixture {
  /// Registers a source of contiguous slabs.
  func addRuns() -> FakeSlabRuns {
    let runs = FakeSlabRuns(physical, host.machine)
    kmem.setSlabRuns(runs.table)
    self.runs = runs
    return runs
  }
}
