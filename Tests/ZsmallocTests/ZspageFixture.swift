// A small machine with a store of objects, and a model of the store: a dictionary of what was stored.

import HostMachine
import MemoryPrimitives
import TestSupport
import Workloads
import XCTest

@testable import PhysicalMemory
@testable import Zsmalloc

final class ZspageFixture {
  let frames: FrameAllocatorFixture
  let store: ZspageAllocator
  private let storage: UnsafeMutableRawPointer

  var host: SimulatedMachine { frames.host }
  var physical: FrameAllocator { frames.memory }

  init(frames count: UInt64 = 2048, processors: Int = 1) throws {
    frames = try FrameAllocatorFixture(frames: [(0, count)], processors: processors)
    storage = .allocate(byteCount: Int(ZspageAllocator.stateSize.rawValue), alignment: 64)
    storage.initializeMemory(
      as: UInt8.self, repeating: 0xa5, count: Int(ZspageAllocator.stateSize.rawValue))
    store = ZspageAllocator.create(
      in: storage, machine: frames.host.machine, physical: frames.memory, space: nil)
  }

  deinit { storage.deallocate() }

  func check(_ note: @autoclosure () -> String = "", _ file: StaticString = #filePath, _ line: UInt = #line) {
    if let broken = store.checkInvariants() { XCTFail("\(broken). \(note())", file: file, line: line) }
  }

  /// Checks that nothing is left of the store.
  func expectEmpty(_ file: StaticString = #filePath, _ line: UInt = #line) {
    check("", file, line)
    XCTAssertEqual(physical.count(.zspage), .zero, file: file, line: line)
    XCTAssertEqual(physical.count(.wired), .zero, file: file, line: line)
    XCTAssertNil(physical.checkInvariants(), file: file, line: line)
  }
}

extension ZspageAllocator {
  func store(_ bytes: [UInt8]) throws(ZsmallocError) -> ZspageHandle {
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 1)
    defer { buffer.deallocate() }
    buffer.copyBytes(from: bytes)
    return try store(UnsafeRawBufferPointer(buffer))
  }
  func bytes(of handle: ZspageHandle) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: Int(handle.byteCount.rawValue))
    return bytes.withUnsafeMutableBytes { copy(handle, into: $0) } == handle.byteCount ? bytes : nil
  }
}

/// The naive model: the bytes that each handle stands for.
struct StoreModel {
  private(set) var contents: [(handle: ZspageHandle, bytes: [UInt8])] = []
  private var random: SeededRandom

  init(seed: UInt64) { random = SeededRandom(seed: seed) }

  mutating func below(_ count: Int) -> Int { Int(random.next() % UInt64(count)) }

  /// Bytes of a length that differ from object to object.
  mutating func bytes(_ length: Int) -> [UInt8] {
    var word = random.next()
    return (0..<length).map { _ in
      word = word &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      return UInt8(truncatingIfNeeded: word >> 56)
    }
  }
  mutating func add(_ handle: ZspageHandle, _ bytes: [UInt8]) { contents.append((handle, bytes)) }
  mutating func remove(_ index: Int) -> ZspageHandle {
    contents.swapAt(index, contents.count - 1)
    return contents.removeLast().handle
  }
  /// The first object whose contents differ from the store's.
  func difference(from store: ZspageAllocator) -> String? {
    for (handle, bytes) in contents where store.bytes(of: handle) != bytes {
      return "object \(handle.rawValue) of \(bytes.count) bytes"
    }
    return nil
  }
}
