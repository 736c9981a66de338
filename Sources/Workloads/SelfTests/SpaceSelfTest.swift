// selftest space: a wired range has addresses, frames and mappings, and none of them once it is freed.

import KernelMemory
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension SelfTests {
  func testSpace() -> SelfTestOutcome {
    let space = memory.space
    let pages = PageCount(UInt64(16))
    let address: VirtualAddress
    do throws(KernelSpaceError) {
      address = try space.allocateWired(
        pages, from: .kernel, role: .wired, contents: .zero,
        for: FrameOwner("self-test, a range"))
    } catch {
      return .notBegun("no memory for a range of 16 pages")
    }
    var flaw: StaticString?
    for page in 0..<16 as Range<UInt64> {
      guard let translation = memory.pageTables.translate(address + PageCount(page)) else {
        flaw = "a page of a wired range is not mapped"
        continue
      }
      if memory.physical.whatIs(translation.physical.frame).role != .wired {
        flaw = "a mapped frame has another role"
      }
      let word = memory.machine.directMap.pointer(to: translation.physical).load(as: UInt64.self)
      if word != 0 { flaw = "a page that was to be zero is not" }
    }
    space.freeWired(address, pages)
    if memory.pageTables.translate(address) != nil { flaw = "a freed page is still mapped" }
    return SelfTestOutcome(flaw ?? space.checkInvariants())
  }
}
