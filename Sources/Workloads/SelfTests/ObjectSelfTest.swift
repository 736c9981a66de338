// selftest objects: objects of many sizes are filled, each with a number of its own, and keep it.

import KernelMemory
import Kmem
import MemoryPrimitives

extension SelfTests {
  func testObjects() -> SelfTestOutcome {
    let kmem = memory.kmem
    let type = kmem.type(named: ShortName("selftest"))
    kmem.drain()
    var held = InlineArray<64, UInt>(repeating: 0)
    var flaw: StaticString?
    // Sizes from 8 bytes to 4 KiB; each object is filled with its own number and must keep it.
    func size(_ i: Int) -> ByteCount { ByteCount(8 + i * 64 + i * i % 7) }
    for i in 0..<64 {
      guard let object = kmem.alloc(size(i), type: type) else { break }
      held[i] = UInt(bitPattern: object)
      object.initializeMemory(as: UInt8.self, repeating: UInt8(i + 1), count: Int(size(i).rawValue))
    }
    for i in 0..<64 {
      guard let object = UnsafeMutablePointer<UInt8>(bitPattern: held[i]) else { continue }
      let count = Int(size(i).rawValue)
      if object[0] != UInt8(i + 1) || object[count - 1] != UInt8(i + 1) { flaw = "two objects overlap" }
      kmem.free(UnsafeMutableRawPointer(object), size: size(i), type: type)
    }
    kmem.drain()
    let figures = kmem.describe(type)
    if held[0] == 0 { return .notBegun("no memory for an object") }
    if flaw == nil && figures.inUse != 0 { flaw = "objects did not come back" }
    return SelfTestOutcome(flaw ?? kmem.checkInvariants())
  }
}
