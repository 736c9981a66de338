// A small machine with a frame allocator, for the tests of physical memory and of what lies directly above it.

import HostMachine
import MemoryPrimitives
import PhysicalMemory
import XCTest

/// A machine whose memory is the given runs of frames (first, count): its memory map, early memory and frame allocator.
package final class FrameAllocatorFixture {
  package let host: SimulatedMachine
  package let map: MemoryMap
  package let early: EarlyMemory
  package private(set) var memory: FrameAllocator!
  private let storage: [UnsafeMutableRawPointer]

  package init(
    frames: [(UInt64, UInt64)], processors: Int = 1, opens: Bool = true,
    occupied: [(UInt64, UInt64, FrameRole)] = []
  ) throws {
    let top = frames.map { $0.0 + $0.1 }.max()!
    host = SimulatedMachine(memory: ByteCount(max(top << 12, 1 << 20)), processors: processors)
    let ranges = frames.map {
      FirmwareRange(
        base: PhysicalAddress($0.0 << 12), length: ByteCount($0.1 << 12), kind: .usable)
    }
    var storage: [UnsafeMutableRawPointer] = []
    func allocate(_ size: ByteCount) -> UnsafeMutableRawPointer {
      let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: 16)
      // No code may rely on zeroes.
      memory.initializeMemory(as: UInt8.self, repeating: 0xa5, count: Int(size.rawValue))
      storage.append(memory)
      return memory
    }
    map = try MemoryMap(
      allocate(MemoryMap.storage(ranges: ranges.count)), count: ranges.count,
      rules: MapRules(lowMemory: .all)
    ) { ranges[$0] }
    early = EarlyMemory(
      allocate(EarlyMemory.storage), machine: host.machine, map: map, ceiling: PhysicalAddress(4 << 30))
    self.storage = storage
    for run in occupied {
      try early.occupy(PhysicalAddress(run.0 << 12), ByteCount(run.1 << 12), role: run.2)
    }
    if opens { memory = try FrameAllocator.create(machine: host.machine, map: map, early: early) }
  }

  deinit { for pointer in storage { pointer.deallocate() } }

  package func open() throws {
    memory = try FrameAllocator.create(machine: host.machine, map: map, early: early)
  }

  package func check(_ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = memory.checkInvariants() { XCTFail("invariant \(broken)", file: file, line: line) }
  }

  /// The role of each frame up to the highest one, read record by record.
  package var roles: [FrameRole] {
    (0..<Int(map.end.rawValue)).map { memory.whatIs(FrameNumber(UInt32($0))).role }
  }
}

/// The state that a refused operation must not change: every free block and role, every count.
package struct FrameSnapshot: Equatable {
  package var blocks: [UInt64] = []
  package var roles: [UInt64] = []
  package var counts: [UInt64] = []
  package var pageblocks: [PageblockCounts] = []

  package init(_ memory: FrameAllocator) {
    memory.forEachFreeBlock { blocks.append(UInt64($0.rawValue) << 8 | UInt64($1.rawValue)) }
    memory.forEachRole { roles += [UInt64($0.first.rawValue), $0.count.rawValue, UInt64($1.rawValue)] }
    for role in 0..<FrameRole.count {
      counts.append(memory.count(FrameRole(rawValue: UInt8(role))!).rawValue)
    }
    memory.forEachPageblock { pageblocks.append($0) }
  }
}
