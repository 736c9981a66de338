import HostMachine
import MemoryPrimitives
import Workloads
import XCTest

@testable import Vmem

/// A simulated machine with a supply of tags and arenas on it.
final class VmemFixture {
  let host: SimulatedMachine
  let tags: Tags
  private var nextPage: UInt64
  private var freePages: [UnsafeMutableRawPointer] = []
  private let lock = NSLock()
  /// Pages that the source has given out.
  private(set) var pagesOut = 0
  /// Pages that the source will give out at most.
  var pageLimit = Int.max
  private var memories: [UnsafeMutableRawPointer] = []

  init(staticPages: UInt64 = 1, memory: ByteCount = .mebibytes(256), processors: Int = 2) {
    host = SimulatedMachine(memory: memory, processors: processors)
    nextPage = 1 + staticPages
    let directMap = host.machine.directMap
    let box = UnsafeMutablePointer<Unmanaged<VmemFixture>?>.allocate(capacity: 1)
    box.initialize(to: nil)
    self.box = box
    let source = TagSource(
      base: VirtualAddress(directMap.base), UnsafeMutableRawPointer(box),
      allocatePage: { context, _ in VmemFixture.of(context).allocatePage() },
      freePage: { context, page in VmemFixture.of(context).freePage(page) })
    let state = UnsafeMutableRawPointer.allocate(byteCount: Int(Tags.stateSize.rawValue), alignment: 64)
    memories.append(state)
    tags = Tags.create(
      in: state, staticTags: directMap.pointer(to: PhysicalAddress(4096)), PageCount(staticPages),
      source: source, machine: host.machine)
    box.pointee = Unmanaged.passUnretained(self)
  }

  private let box: UnsafeMutablePointer<Unmanaged<VmemFixture>?>

  deinit {
    for memory in memories { memory.deallocate() }
    box.deallocate()
  }

  private static func of(_ context: UnsafeMutableRawPointer?) -> VmemFixture {
    context!.load(as: Unmanaged<VmemFixture>?.self)!.takeUnretainedValue()
  }

  private func allocatePage() -> UnsafeMutableRawPointer? {
    lock.withLock {
      guard pagesOut < pageLimit else { return nil }
      pagesOut += 1
      if let page = freePages.popLast() { return page }
      nextPage += 1
      let page = host.machine.directMap.pointer(to: PhysicalAddress(nextPage * 4096))
      page.initializeMemory(as: UInt8.self, repeating: 0xa5, count: 4096)
      return page
    }
  }

  private func freePage(_ page: UnsafeMutableRawPointer) {
    lock.withLock {
      pagesOut -= 1
      page.initializeMemory(as: UInt8.self, repeating: 0x5a, count: 4096)
      freePages.append(page)
    }
  }

  func arena(
    _ name: StaticString = "test", quantum: UInt64 = 1, contents: ArenaContents = .addresses,
    source: ArenaSource? = nil, importUnit: UInt64? = nil
  ) -> Arena {
    let memory = UnsafeMutableRawPointer.allocate(byteCount: Int(Arena.stateSize.rawValue), alignment: 64)
    memories.append(memory)
    let options = ArenaOptions(
      name: ShortName(name), quantum: Alignment(quantum)!, contents: contents, source: source,
      importUnit: importUnit.flatMap { Alignment($0) })
    return Arena.create(options, in: memory, tags: tags)
  }

  func check(file: StaticString = #filePath, line: UInt = #line) {
    if let broken = tags.checkInvariants() { XCTFail("\(broken)", file: file, line: line) }
  }

  /// Everything of all arenas that an operation which fails must leave as it was.
  struct Snapshot: Equatable {
    var sizes: [ArenaSize] = []
    var segments: [Segment] = []
    var hashed: [UInt64] = []
  }

  func snapshot() -> Snapshot {
    var all = Snapshot()
    tags.forEachArena { arena in
      all.sizes += [arena.size(.allocated), arena.size(.free), arena.size(.total), arena.size(.largestFree)]
      all.segments += arena.segments()
      all.hashed.append(arena.figures.busySegments)
    }
    return all
  }
}

extension Arena {
  func alloc(_ size: UInt64, _ policy: FitPolicy = .instantFit) -> UInt64? {
    try? alloc(ArenaSize(size), policy: policy).rawValue
  }
  func free(_ address: UInt64, _ size: UInt64) { free(ArenaAddress(address), ArenaSize(size)) }
  func add(_ range: ClosedRange<UInt64>) throws {
    try add(ArenaAddress(range.lowerBound), through: ArenaAddress(range.upperBound))
  }
  func segments() -> [Segment] {
    var all: [Segment] = []
    walk { all.append($0) }
    return all
  }
}

func XCTAssertVmem<T>(
  _ expected: VmemError, _ body: () throws(VmemError) -> T, file: StaticString = #filePath, line: UInt = #line
) {
  do throws(VmemError) {
    _ = try body()
    XCTFail("was granted", file: file, line: line)
  } catch {
    XCTAssertEqual(error, expected, file: file, line: line)
  }
}
