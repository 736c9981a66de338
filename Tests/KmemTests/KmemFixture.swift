// A small machine with kmem up, and a stand-in for the layer that gives large requests their pages.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import Kmem
@testable import PhysicalMemory

final class KmemFixture {
  private let frames: FrameAllocatorFixture
  let kmem: KmemAllocator
  let large: FakeLargePages
  /// The source of contiguous slabs, kept as long as the instance.
  var runs: FakeSlabRuns?
  private let state: UnsafeMutableRawPointer

  var host: SimulatedMachine { frames.host }
  var physical: FrameAllocator { frames.memory }

  init(frames count: UInt64 = 512, processors: Int = 1) throws {
    frames = try FrameAllocatorFixture(frames: [(0, count)], processors: processors)
    state = .allocate(
      byteCount: Int(KmemAllocator.size(processors: processors).rawValue), alignment: 4096)
    large = FakeLargePages(frames.host)
    kmem = KmemAllocator.create(
      in: state, physical: frames.memory, large: large.pages, machine: frames.host.machine)
  }

  deinit { state.deallocate() }

  func check(_ note: @autoclosure () -> String = "", _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = kmem.checkInvariants() { XCTFail("\(broken). \(note())", file: file, line: line) }
  }

  /// Checks that a drain releases all memory: no object is in use.
  func expectEmpty(_ file: StaticString = #filePath, _ line: UInt = #line) {
    kmem.drain()
    check("", file, line)
    XCTAssertEqual(physical.count(.slab), .zero, "slabs left", file: file, line: line)
    XCTAssertEqual(kmem.usedBytes, .zero, file: file, line: line)
    XCTAssertNil(physical.checkInvariants(), file: file, line: line)
  }

  func type(_ name: StaticString = "test") -> MemoryType { kmem.type(named: ShortName(name)) }

  func description(of name: StaticString) -> CacheDescription? {
    var found: CacheDescription?
    kmem.forEachCache { if $0.name == ShortName(name) { found = $0 } }
    return found
  }
}

/// Addresses without memory behind them.
final class FakeLargePages {
  let host: SimulatedMachine
  var next: UInt64 = 0xffff_c000_0000_0000
  var live: [UInt64: UInt64] = [:]
  var left: UInt64 = 1000
  private let lock = NSLock()

  init(_ host: SimulatedMachine) { self.host = host }

  var pages: LargePages {
    LargePages(
      Unmanaged.passUnretained(self).toOpaque(),
      allocatePages: { context, pages, _, _, _, _, _ in
        let me = Unmanaged<FakeLargePages>.fromOpaque(context!).takeUnretainedValue()
        return me.lock.withLock {
          guard pages <= me.left else { return 0 }
          me.left -= pages
          defer { me.next += (pages + 1) << 12 }
          me.live[me.next] = pages
          return me.next
        }
      },
      freePages: { context, address, pages, site in
        let me = Unmanaged<FakeLargePages>.fromOpaque(context!).takeUnretainedValue()
        let known = me.lock.withLock { me.live[address] }
        guard known == pages else {
          var fault = FaultReport(
            known == nil ? .notAllocated : .wrongSize, "no such pages", address, .virtualAddress)
          fault.given = pages
          me.host.machine.report(fault)
          return false
        }
        me.lock.withLock {
          me.live[address] = nil
          me.left += pages
        }
        return true
      })
  }
}

/// A live object of the model: its bytes are a function of the stamp.
struct LiveObject {
  var pointer: UnsafeMutableRawPointer
  var size: Int
  var type: MemoryType
  var cache: ObjectCache?
  var stamp: UInt8

  /// Whether `FakeLargePages` allocated it: an address without memory.
  var isLarge: Bool { UInt64(UInt(bitPattern: pointer)) >= 0xffff_c000_0000_0000 }

  func fill() {
    guard !isLarge else { return }
    for i in 0..<size {
      pointer.storeBytes(of: stamp &+ UInt8(truncatingIfNeeded: i), toByteOffset: i, as: UInt8.self)
    }
  }
  var isIntact: Bool {
    guard !isLarge else { return true }
    for i in 0..<size
    where pointer.load(fromByteOffset: i, as: UInt8.self) != stamp &+ UInt8(truncatingIfNeeded: i) {
      return false
    }
    return true
  }
  func overlaps(_ other: LiveObject) -> Bool {
    let (a, b) = (UInt(bitPattern: pointer), UInt(bitPattern: other.pointer))
    return a < b + UInt(max(other.size, 1)) && b < a + UInt(max(size, 1))
  }
  func free(_ kmem: KmemAllocator) {
    if let cache {
      cache.free(pointer, type: type)
    } else {
      kmem.free(pointer, size: ByteCount(size), type: type)
    }
  }
}
