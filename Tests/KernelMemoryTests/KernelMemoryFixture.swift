// All layers, assembled over a simulated machine with the firmware's map, occupied ranges and image of the
// test's choice.

import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem
import XCTest

func usable(_ base: UInt64, _ length: UInt64) -> FirmwareRange {
  FirmwareRange(base: PhysicalAddress(base), length: ByteCount(length), kind: .usable)
}
func reserved(_ base: UInt64, _ length: UInt64) -> FirmwareRange {
  FirmwareRange(base: PhysicalAddress(base), length: ByteCount(length), kind: .reserved)
}

final class KernelMemoryFixture: @unchecked Sendable {
  let host: SimulatedMachine
  let memory: MemorySystem
  private let workspace: UnsafeMutableRawPointer

  var physical: FrameAllocator { memory.physical }
  var space: KernelAddressSpace { memory.space }
  var kmem: KmemAllocator { memory.kmem }
  var tables: PageMap { memory.pageTables }

  /// A machine with `size` bytes of memory from 0 on, all of it usable.
  convenience init(_ size: ByteCount = .mebibytes(16), largestLeaf: LargestLeaf = .mebibytes2) throws {
    try self.init(
      SimulatedMachine(memory: size, processors: 2), [usable(0, size.rawValue)], largestLeaf: largestLeaf)
  }

  init(
    _ host: SimulatedMachine, _ map: [FirmwareRange], occupied: [OccupiedRange] = [],
    image: [ImageSegment] = [],
    carveOut: CarveOut = CarveOut(), largestLeaf: LargestLeaf = .mebibytes2, levels: PagingLevels = .four,
    activate: (PhysicalAddress) -> Void = { _ in }
  ) throws {
    self.host = host
    let bytes = Int(MemorySystem.workspaceSize(ranges: map.count + carveOut.count).rawValue)
    let workspace = UnsafeMutableRawPointer.allocate(byteCount: bytes + 64, alignment: 64)
    workspace.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    // No layer may write behind the workspace.
    (workspace + bytes).initializeMemory(as: UInt8.self, repeating: 0xa5, count: 64)
    self.workspace = workspace
    var request = BootRequest(machine: host.machine, workspace: workspace, firmwareRangeCount: map.count)
    request.rules.lowMemory = .all
    request.largestLeaf = largestLeaf
    request.levels = levels
    request.carveOut = carveOut
    do {
      memory = try occupied.withUnsafeBufferPointer { occupied in
        try image.withUnsafeBufferPointer { image in
          request.occupied = occupied
          request.image = image
          return try MemorySystem.assemble(request, firmware: { map[$0] }, activate: activate)
        }
      }
    } catch {
      workspace.deallocate()
      throw error
    }
    XCTAssertTrue(
      (0..<64).allSatisfy { (workspace + bytes).load(fromByteOffset: $0, as: UInt8.self) == 0xa5 })
  }

  deinit { workspace.deallocate() }

  func check(_ note: @autoclosure () -> String = "", _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = memory.checkInvariants() { XCTFail("\(broken). \(note())", file: file, line: line) }
  }

  /// Frames by role, ranges by kind, what is mapped, and what kmem's users hold.
  struct Picture: Equatable {
    var roles: [FrameRole: UInt64] = [:]
    var ranges: [RangeKind: [UInt64]] = [:]
    var arenas: [[UInt64]] = []
    var mapped: [[UInt64]] = []
    var kmem: UInt64 = 0
  }

  /// Drains kmem first, so that two pictures of one state are equal. Tags are allocated and freed by the page; `tags`
  /// says whether the picture has them.
  func picture(tags: Bool = true) -> Picture {
    kmem.drain()
    var picture = Picture(kmem: kmem.usedBytes.rawValue)
    for number in 0..<UInt8(FrameRole.count) {
      let role = FrameRole(rawValue: number)!
      if !tags && (role == .tags || role == .free) { continue }
      picture.roles[role] = physical.count(role).rawValue
    }
    RangeKind.forEach { picture.ranges[$0] = [space.pages($0).rawValue, space.rangeCount($0)] }
    space.tags.forEachArena {
      picture.arenas.append([$0.size(.allocated).rawValue, $0.size(.free).rawValue])
    }
    tables.forEachRun {
      picture.mapped.append([
        $0.address.rawValue, $0.physical.rawValue, $0.count.rawValue, UInt64($0.protection.rawValue),
        UInt64($0.attribute.rawValue), UInt64($0.level.rawValue),
      ])
    }
    return picture
  }

  func type(_ name: StaticString = "test") -> MemoryType { kmem.type(named: Name(name)) }

  /// All frames that can be allocated, one by one.
  func takeAll() -> [FrameNumber] {
    var frames: [FrameNumber] = []
    while let frame = try? physical.allocate(Order(0), role: .loaned, priority: .interrupt) {
      frames.append(frame)
    }
    return frames
  }

  func giveBack(_ frames: [FrameNumber]) {
    for frame in frames { physical.free(FrameRun(first: frame, count: .one)) }
  }

  func word(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }
}
