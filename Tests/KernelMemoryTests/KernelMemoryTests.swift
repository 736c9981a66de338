// Assembly: every map that a machine may bring along comes up as specified, or is refused.

import HostMachine
import KernelMemory
import KernelSpace
import Kmem
import MemoryPrimitives
import PageTables
import PhysicalMemory
import TestSupport
import XCTest

final class KernelMemoryTests: XCTestCase {
  // MARK: Maps

  /// Every frame of the map has a role, and each frame that can be allocated lies in usable memory without an occupant.
  private func use(_ system: TestSystem, _ map: [FirmwareRange], _ what: String) {
    system.check(what)
    var sum: UInt64 = 0
    for number in 0..<UInt8(FrameRole.count) where number != FrameRole.absent.rawValue {
      sum += system.physical.count(FrameRole(rawValue: number)!).rawValue
    }
    XCTAssertEqual(sum, system.physical.total.rawValue, what)
    XCTAssertEqual(system.physical.total, system.memory.map.frames, what)
    XCTAssertLessThan(system.memory.footprint.rawValue, system.physical.total.bytes.rawValue, what)
    XCTAssertNil(system.tables.proveWriteXorExecute(), what)
    guard system.physical.total.bytes <= .mebibytes(64) else { return }
    let before = system.layerPicture()
    let frames = system.takeAll()
    XCTAssertEqual(Set(frames.map(\.rawValue)).count, frames.count, what)
    for frame in frames {
      let (first, last) = (frame.address.rawValue, frame.address.rawValue + 4095)
      func lies(in range: FirmwareRange) -> Bool {
        range.length > .zero && range.base.rawValue <= first
          && last - range.base.rawValue < range.length.rawValue
      }
      func touches(_ range: FirmwareRange) -> Bool {
        range.length > .zero && range.base.rawValue <= last
          && (first < range.base.rawValue || first - range.base.rawValue < range.length.rawValue)
      }
      // Two usable ranges may make up a frame together.
      let isUsable =
        map.contains { $0.kind == .usable && lies(in: $0) }
        || map.filter { $0.kind == .usable && touches($0) }.count > 1
      XCTAssertTrue(isUsable, "\(what): frame \(frame.rawValue)")
      XCTAssertFalse(map.contains { $0.kind == .reserved && touches($0) }, "\(what): frame \(frame.rawValue)")
      system.words(frame)[0] = UInt64(frame.rawValue)
      XCTAssertEqual(
        system.tables.translate(system.host.machine.directMap.virtualAddress(of: frame.address))?.physical,
        frame.address, what)
    }
    system.check(what)
    system.giveBack(frames)
    XCTAssertEqual(system.layerPicture(), before, what)
  }

  func testUglyMapsComeUp() throws {
    let m: UInt64 = 1 << 20
    var crumbs: [FirmwareRange] = [usable(8 * m, 8 * m)]
    for i in UInt64(0)..<4000 { crumbs.append(usable(32 * m + i * 8192, 4096)) }
    var holes: [FirmwareRange] = [usable(0, 24 * m)]
    for i in UInt64(0)..<1500 { holes.append(reserved(12 * m + i * 8192 + 1, 1)) }
    let maps: [(String, [FirmwareRange])] = [
      (
        "a PC's",
        [usable(0, 0x9fc00), reserved(0x9fc00, 0x400), reserved(0xf0000, 0x10000), usable(m, 31 * m)]
      ),
      ("unsorted", [usable(24 * m, 8 * m), reserved(0, 4096), usable(4 * m, 8 * m), usable(16 * m, 4 * m)]),
      (
        "overlapping", [usable(m, 20 * m), usable(10 * m, 20 * m), usable(12 * m, m), reserved(15 * m, 5000)]
      ),
      ("unaligned", [usable(m + 1, 12 * m - 2), usable(13 * m + 4095, 3 * m + 2), usable(20 * m + 1, 4096)]),
      ("a frame of two halves", [usable(m, 8 * m + 2048), usable(9 * m + 2048, 8 * m)]),
      (
        "empty and wrapping",
        [
          usable(m, 16 * m), usable(5, 0), reserved(7 * m, 0), usable(UInt64.max - 10, 4096),
          usable(1 << 63, 1 << 63),
          usable(UInt64.max, 1),
        ]
      ),
      ("reserved to the top", [usable(m, 16 * m), reserved(12 * m, UInt64.max)]),
      ("reserved wins", [usable(m, 32 * m), usable(m, 32 * m), reserved(8 * m - 1, 2)]),
      ("thousands of crumbs", crumbs),
      ("thousands of holes", holes),
      ("4 MiB", [usable(m, 4 * m)]),
      (
        "the last page below a section", [usable(m, 8 * m), usable(128 * m - 4096, 4096), usable(128 * m, m)]
      ),
    ]
    for (what, map) in maps {
      for leaf in [LargestLeaf.mebibytes2, .gibibyte] {
        let system = try TestSystem(
          SimulatedMachine(memory: .mebibytes(256), processors: 1), map, largestLeaf: leaf)
        use(system, map, what)
      }
    }
  }

  func testLargeMachinesComeUp() throws {
    let g: UInt64 = 1 << 30
    // A hole below 4 GiB as PCs have it; and more than there are frame numbers for.
    let sizes: [(ByteCount, [FirmwareRange])] = [
      (.gibibytes(20), [usable(1 << 20, 3 * g - 1 << 20), reserved(3 * g, g), usable(4 * g, 16 * g)]),
      (.gibibytes(64), [usable(0, 64 * g)]),
      (.gibibytes(16 << 10), [usable(0, UInt64(16 << 10) * g), usable(UInt64(20 << 10) * g, g)]),
    ]
    for (size, map) in sizes {
      for leaf in [LargestLeaf.mebibytes2, .gibibyte] where leaf == .gibibyte || size < .gibibytes(1 << 10) {
        let system = try TestSystem(
          SimulatedMachine(memory: size, processors: 1), map, largestLeaf: leaf)
        if size < .gibibytes(1 << 10) { use(system, map, "\(size)") }
        let footprint =
          Double(system.memory.footprint.rawValue) / Double(system.physical.total.bytes.rawValue)
        XCTAssertLessThan(footprint, 0.012, "\(size)")
        XCTAssertLessThanOrEqual(system.physical.total.rawValue, UInt64(FrameNumber.limit))
        let type = system.type()
        let object = try XCTUnwrap(system.kmem.alloc(ByteCount(100), type: type))
        let stack = try system.space.allocateStack(PageCount(4))
        let run = try system.physical.allocate(
          run: PageCount(UInt64(1) << 18), where: RunConstraints(alignment: Alignment(1 << 30)!),
          role: .loaned)
        system.physical.free(run)
        system.space.freeStack(stack)
        system.kmem.free(object, size: ByteCount(100), type: type)
      }
    }
  }

  func testMapsWithoutSpaceAreRefused() throws {
    let m: UInt64 = 1 << 20
    let maps: [(String, [FirmwareRange])] = [
      ("none", []), ("nothing usable", [reserved(0, 64 * m)]),
      ("all reserved", [usable(m, m), reserved(0, 8 * m)]),
      ("a page", [usable(2 * m, 4096)]), ("less than a page", [usable(2 * m + 1, 4096)]),
      ("too little for the records", [usable(2 * m, 20 * 4096)]),
      ("only below 1 MiB", [usable(0, m)]),
      ("only above 4 GiB, where the stub's tables don't reach", [usable(4 << 30, 64 * m)]),
      ("only wrapping", [usable(UInt64.max - 4096, 1 << 20)]),
    ]
    for (what, map) in maps {
      var isActive = false
      XCTAssertThrowsError(
        try TestSystem(
          SimulatedMachine(memory: .gibibytes(5)), map, activate: { _ in isActive = true }), what
      ) { XCTAssertEqual($0 as? AssemblyError, .tooSmall, what) }
      XCTAssertFalse(isActive, "\(what): tables were made current although the assembly failed")
    }
    // However little there is: refused, or it works.
    var smallest: UInt64?
    for pages in UInt64(1)..<200 {
      let map = [usable(m, pages << 12)]
      guard let system = try? TestSystem(SimulatedMachine(memory: .mebibytes(4)), map) else {
        XCTAssertNil(smallest, "\(pages) pages are refused, \(smallest ?? 0) were not")
        continue
      }
      if smallest == nil { smallest = pages }
      use(system, map, "\(pages) pages")
    }
    print("KernelMemory: the smallest machine has \(smallest ?? 0) pages above 1 MiB")
    XCTAssertLessThan(smallest ?? .max, 200)
  }

  func testAnAssemblyThatRunsOutOfTablesIsRefused() throws {
    for nth in Int64(0)..<40 {
      let host = SimulatedMachine(memory: .mebibytes(16))
      host.failures.pointee.countdown = nth
      do {
        let system = try TestSystem(host, [usable(1 << 20, 15 << 20)])
        host.failures.pointee.countdown = -1
        system.check()
        // A type without memory for its counters is counted under another: no reason to refuse a machine.
        if host.failures.pointee.hasFailed { continue }
        return XCTAssertGreaterThan(nth, 2)
      } catch {
        XCTAssertEqual(error as? AssemblyError, .tooSmall)
      }
    }
    XCTFail("assembly passes points without end")
  }

  // MARK: Occupied ranges and the image

  func testOccupiedRangesAreLeftAlone() throws {
    let host = SimulatedMachine(memory: .mebibytes(64))
    let m: UInt64 = 1 << 20
    let occupied = [
      OccupiedRange(base: PhysicalAddress(m), length: ByteCount(3 * m), role: .image),
      OccupiedRange(base: PhysicalAddress(20 * m + 5), length: ByteCount(2 * m), role: .bootModule),
      // In part another's already; at the end of memory, where records would go; outside; empty; wrapping.
      OccupiedRange(base: PhysicalAddress(21 * m), length: ByteCount(4 * m), role: .bootModule),
      OccupiedRange(base: PhysicalAddress(64 * m - 1), length: ByteCount(UInt64(1)), role: .bootModule),
      OccupiedRange(base: PhysicalAddress(90 * m), length: ByteCount(m), role: .bootModule),
      OccupiedRange(base: PhysicalAddress(30 * m), length: .zero, role: .bootModule),
      OccupiedRange(base: PhysicalAddress(UInt64.max - 5), length: ByteCount(UInt64.max), role: .bootModule),
    ]
    let taken: [Range<UInt64>] = [
      m >> 12..<4 * m >> 12, 20 * m >> 12..<25 * m >> 12, (64 * m >> 12) - 1..<64 * m >> 12,
    ]
    let directMap = host.machine.directMap
    func words(_ frame: UInt64) -> UnsafeMutablePointer<UInt64> {
      directMap.pointer(to: PhysicalAddress(frame << 12)).assumingMemoryBound(to: UInt64.self)
    }
    for frame in taken.joined() { for i in 0..<512 { words(frame)[i] = frame << 12 | UInt64(i) } }
    let system = try TestSystem(host, [usable(0, 0x9f000), usable(m, 63 * m)], occupied: occupied)
    system.check()
    XCTAssertEqual(system.physical.count(.image), PageCount(768))
    XCTAssertEqual(system.physical.count(.bootModule), PageCount(5 * 256 + 1))
    let type = system.type()
    var objects: [UnsafeMutableRawPointer] = []
    for _ in 0..<2000 {
      guard let object = system.kmem.zalloc(ByteCount(3000), type: type) else { break }
      objects.append(object)
    }
    let frames = system.takeAll()
    for frame in frames { for i in 0..<512 { system.words(frame)[i] = 0 } }
    for frame in taken.joined() {
      XCTAssertTrue((0..<512).allSatisfy { words(frame)[$0] == frame << 12 | UInt64($0) }, "frame \(frame)")
    }
    system.giveBack(frames)
    for object in objects { system.kmem.free(object, size: ByteCount(3000), type: type) }
    // A module can be freed; the image can't.
    let free = system.physical.freeCount
    system.physical.free(FrameRun(first: FrameNumber(UInt32(22 * m >> 12)), count: PageCount(256)))
    XCTAssertEqual(system.physical.count(.bootModule), PageCount(4 * 256 + 1))
    XCTAssertGreaterThanOrEqual(system.physical.freeCount, free)
    let faults = host.faults {
      system.physical.free(FrameRun(first: FrameNumber(UInt32(m >> 12)), count: .one))
    }
    XCTAssertEqual(faults.map(\.kind), [.notAllocated])
    system.check()
  }

  func testTooManyOccupiedRangesAreRefused() throws {
    let occupied = (UInt64(0)..<400).map {
      OccupiedRange(
        base: PhysicalAddress(1 << 20 + $0 << 14), length: ByteCount(UInt64(9)), role: .bootModule)
    }
    let map = [usable(1 << 20, 63 << 20)]
    XCTAssertThrowsError(
      try TestSystem(SimulatedMachine(memory: .mebibytes(64)), map, occupied: occupied)
    ) {
      XCTAssertEqual($0 as? AssemblyError, .tooManyRanges)
    }
    // As many as boot can record, but none left for its own ranges; or all memory occupied.
    for count in [200, 230, 240, 245, 248, 249, 250] {
      do {
        try TestSystem(
          SimulatedMachine(memory: .mebibytes(64)), map, occupied: Array(occupied.prefix(count))
        )
        .check()
      } catch { XCTAssertNotNil(error as? AssemblyError, "\(count)") }
    }
    let all = OccupiedRange(base: PhysicalAddress(0), length: .mebibytes(64), role: .bootModule)
    XCTAssertThrowsError(
      try TestSystem(SimulatedMachine(memory: .mebibytes(64)), map, occupied: [all])
    ) {
      XCTAssertEqual($0 as? AssemblyError, .tooSmall)
    }
  }

  func testTheFinalTablesKeepWriteAndExecuteApart() throws {
    let base: UInt64 = 0xffff_ffff_8000_0000
    func segment(_ first: UInt64, _ count: UInt64, _ protection: Protection) -> ImageSegment {
      ImageSegment(
        address: VirtualAddress(base + first << 12), physical: PhysicalAddress(first << 12),
        count: PageCount(count), protection: protection)
    }
    // Text that ends in the middle of a 2 MiB leaf, an empty segment, stacks with a guard page below each.
    let image = [
      segment(256, 300, .kernelText), segment(556, 40, .kernelReadOnly), segment(596, 0, .kernelReadOnly),
      segment(596, 30, .kernelData), segment(627, 4, .kernelData), segment(632, 16, .kernelData),
    ]
    let end = UInt64(648)
    for leaf in [LargestLeaf.mebibytes2, .gibibyte] {
      for levels in [PagingLevels.four, .five] {
        var root: PhysicalAddress?
        let host = SimulatedMachine(memory: .gibibytes(2), processors: 1)
        let system = try TestSystem(
          host, [usable(0, 0x9f000), usable(1 << 20, 2 << 30 - 1 << 20)],
          occupied: [
            OccupiedRange(base: PhysicalAddress(1 << 20), length: PageCount(end - 256).bytes, role: .image)
          ], image: image, largestLeaf: leaf, levels: levels, activate: { root = $0 })
        let tables = system.tables
        XCTAssertEqual(root, tables.root)
        XCTAssertEqual(tables.levels, levels)
        XCTAssertNil(tables.proveWriteXorExecute())
        for page in UInt64(256)..<end {
          let address = VirtualAddress(base + page << 12)
          let alias = host.machine.directMap.virtualAddress(of: PhysicalAddress(page << 12))
          let owner = image.last { $0.address <= address && address < $0.address + $0.count }
          XCTAssertEqual(tables.translate(address)?.protection, owner?.protection, "page \(page)")
          if owner != nil { XCTAssertEqual(tables.translate(address)?.physical, PhysicalAddress(page << 12)) }
          let mayWrite = owner?.protection.contains(.writable) ?? true
          XCTAssertEqual(
            tables.translate(alias)?.protection, mayWrite ? .kernelData : .kernelReadOnly, "\(page)")
        }
        // Guard pages, page 0, what the loader had mapped at 0, and what lies around the image.
        for address in [
          base + 626 << 12, base + 631 << 12, 0, 4096, 1 << 20, 1 << 30, base, base + end << 12,
        ] {
          XCTAssertNil(tables.translate(VirtualAddress(address)), String(address, radix: 16))
        }
        XCTAssertNil(tables.translate(host.machine.directMap.virtualAddress(of: PhysicalAddress(0x9f000))))
        system.check()
      }
    }
  }

  // MARK: Side by side

  func testTwoInstancesWorkSideBySide() throws {
    let (one, two) = (try TestSystem(.mebibytes(16)), try TestSystem(.mebibytes(32)))
    let (type, other) = (one.type(), two.type())
    let (before, others) = (one.layerPicture(), two.layerPicture())
    var live: [(UnsafeMutableRawPointer, UnsafeMutableRawPointer)] = []
    for size in 1...300 {
      let pair = (
        try XCTUnwrap(one.kmem.alloc(ByteCount(size), type: type)),
        try XCTUnwrap(two.kmem.zalloc(ByteCount(size), type: other))
      )
      pair.0.initializeMemory(as: UInt8.self, repeating: 0xff, count: size)
      live.append(pair)
    }
    // The one runs dry, and its faults are its own.
    let frames = one.takeAll()
    XCTAssertThrowsError(try one.space.allocateWired(PageCount(9)))
    let stack = try two.space.allocateStack(PageCount(9))
    XCTAssertEqual(one.host.faults { one.space.freeStack(stack) }.count, 1)
    XCTAssertEqual(two.host.faults {}.count, 0)
    for system in [one, two] { system.check() }
    one.giveBack(frames)
    for (index, pair) in live.enumerated() {
      XCTAssertTrue((0...index).allSatisfy { pair.1.load(fromByteOffset: $0, as: UInt8.self) == 0 })
      one.kmem.free(pair.0, size: ByteCount(index + 1), type: type)
      two.kmem.free(pair.1, size: ByteCount(index + 1), type: other)
    }
    two.space.freeStack(stack)
    XCTAssertEqual(one.layerPicture(), before)
    XCTAssertEqual(two.layerPicture(), others)
  }

  // MARK: One tree of figures

  func testStatisticsHaveUniqueNames() throws {
    let system = try TestSystem(.mebibytes(16))
    let statistics = system.memory.statistics
    XCTAssertGreaterThan(statistics.count, 40)
    var names: Set<String> = []
    for index in 0..<statistics.count {
      let name = "\(statistics[index].name)"
      XCTAssertTrue(names.insert(name).inserted, name)
      XCTAssertTrue(["vm", "kmem", "vmem", "zs"].contains(name.prefix { $0 != "." }), name)
      _ = statistics[index].value
    }
  }
}
