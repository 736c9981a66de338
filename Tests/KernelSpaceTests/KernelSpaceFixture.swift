import CPlatform
import HostMachine
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem
import Workloads
import XCTest

/// A machine with everything up to kernel space.
final class KernelSpaceFixture: @unchecked Sendable {
  let host: SimulatedMachine
  let physical: FrameAllocator
  let tables: PageMap
  let space: KernelAddressSpace
  private var storage: [UnsafeMutableRawPointer] = []

  init(memory: ByteCount = .mebibytes(16), largest: LargestLeaf = .mebibytes2) throws {
    host = SimulatedMachine(memory: memory, processors: 2)
    let machine = host.machine
    var storage: [UnsafeMutableRawPointer] = []
    func place(_ size: ByteCount) -> UnsafeMutableRawPointer {
      let pointer = UnsafeMutableRawPointer.allocate(byteCount: Int(size.rawValue), alignment: 64)
      pointer.initializeMemory(as: UInt8.self, repeating: 0, count: Int(size.rawValue))
      storage.append(pointer)
      return pointer
    }
    let map = try MemoryMap(
      place(MemoryMap.storage(ranges: 1)), count: 1, rules: MapRules(lowMemory: .all)
    ) { _ in
      FirmwareRange(base: PhysicalAddress(0), length: memory, kind: .usable)
    }
    let early = EarlyMemory(
      place(EarlyMemory.storage), machine: machine, map: map, ceiling: PhysicalAddress(4 << 30))
    tables = try PageMap(
      in: place(PageMap.stateSize(processors: machine.processorCount)), machine: machine, levels: .four,
      largestLeaf: largest,
      frames: early.frameSource)
    for i in 0..<map.count { try tables.mapDirect(map[i].first.address, count: map[i].count) }
    let records = try FrameAllocator.reserveRecords(of: map, from: early)
    let staticTags = try XCTUnwrap(early.allocate(PageCount(4), role: .tags))
    physical = FrameAllocator.open(machine: machine, map: map, early: early, records: records)
    tables.setSource(physical.frameSource(role: .pageTable, priority: .system))
    space = try KernelAddressSpace.create(
      in: place(KernelAddressSpace.stateSize), machine: machine, physical: physical, tables: tables,
      staticTags: machine.directMap.pointer(to: staticTags.first), staticTags.count)
    self.storage = storage
  }

  deinit { for pointer in storage { pointer.deallocate() } }

  func check(_ message: @autoclosure () -> String = "", line: UInt = #line) {
    for broken in [space.checkInvariants(), space.tags.checkInvariants(), physical.checkInvariants()] {
      if let broken { XCTFail("\(broken) \(message())", line: line) }
    }
  }

  /// The number of the first broken invariant, as the message of the check begins.
  var brokenInvariant: String? { space.checkInvariants().map { "\($0)".components(separatedBy: ":")[0] } }

  /// All that can be seen of frames, arenas and tables, but for tags and tables that are kept in stock.
  struct Picture: Equatable {
    var roles: [UInt64] = []
    var arenas: [[UInt64]] = []
    var segments: [[UInt64]] = []
    var runs: [[UInt64]] = []
    var counts: [UInt64] = []
  }
  /// Tags come in pages, and a failed request may have fetched one: `tags` says whether the picture has them.
  func picture(tags: Bool = true) -> Picture {
    var picture = Picture()
    for number in UInt8(0)..<UInt8(FrameRole.count) {
      guard let role = FrameRole(rawValue: number) else { continue }
      if !tags && (role == .tags || role == .free) { continue }
      picture.roles.append(physical.count(role).rawValue)
    }
    space.tags.forEachArena { arena in
      picture.arenas.append([arena.size(.allocated).rawValue, arena.size(.free).rawValue])
      arena.walk {
        picture.segments.append([$0.first.rawValue, $0.last.rawValue, UInt64($0.kind.rawValue)])
      }
    }
    tables.forEachRun {
      picture.runs.append([
        $0.address.rawValue, $0.physical.rawValue, $0.count.rawValue, UInt64($0.level.rawValue),
        UInt64($0.protection.rawValue), UInt64($0.attribute.rawValue),
      ])
    }
    RangeKind.forEach {
      picture.counts.append(space.pages($0).rawValue)
      picture.counts.append(space.rangeCount($0))
    }
    return picture
  }

  func frame(_ address: VirtualAddress) -> FrameNumber? { tables.translate(address)?.physical.frame }
  func bytes(_ frame: FrameNumber) -> UnsafeMutablePointer<UInt64> {
    host.machine.directMap.pointer(to: frame).assumingMemoryBound(to: UInt64.self)
  }
  func alias(_ frame: FrameNumber) -> PageTranslation? {
    tables.translate(host.machine.directMap.virtualAddress(of: frame.address))
  }
}

/// A processor on this thread that caches translations and tables until an invalidation. `atInvalidation` runs before
/// it has carried one out, as another processor would.
final class RememberingProcessor {
  private let tables: PageMap
  private let memory = UnsafeMutableRawPointer.allocate(
    byteCount: Int(TranslationBuffer.size.rawValue), alignment: 64)
  private let buffer: TranslationBuffer
  var atInvalidation: (() -> Void)?
  private var isInside = false

  init(_ bed: KernelSpaceFixture) {
    tables = bed.tables
    buffer = TranslationBuffer(memory)
    cp_processor().pointee.invalidate_context = Unmanaged.passUnretained(self).toOpaque()
    cp_processor().pointee.invalidate = { context, address in
      Unmanaged<RememberingProcessor>.fromOpaque(context!).takeUnretainedValue().invalidate(address)
    }
  }

  deinit { memory.deallocate() }

  /// Ends its part: the hook may hold it.
  func end() {
    atInvalidation = nil
    cp_processor().pointee.invalidate = nil
  }

  private func invalidate(_ address: UInt64) {
    if !isInside {
      isInside = true
      atInvalidation?()
      isInside = false
    }
    if address == .max { buffer.invalidate(0, 1 << 52) } else { buffer.invalidate(address, 1) }
  }

  /// The frame that a store to `address` reaches, or nil when it faults.
  func reach(_ address: VirtualAddress) -> FrameNumber? { buffer.reach(address, .write, tables) }
}
