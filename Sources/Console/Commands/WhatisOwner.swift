// whatis, of a frame: the owner, by the record of the frame or by the layer that keeps its own words there.

import KernelMemory
import Kmem
import MemoryPrimitives
import Paging
import PhysicalMemory

/// The owner of a frame, as far as it is known.
struct NamedOwner {
  /// The purpose of the frame; nil for a free frame, and for one that no caller has stated a purpose for.
  var name: Line?
  /// The type of kmem under which its memory counts.
  var type: ShortName?
  /// The code that allocated it.
  var site = CallSite.unknown
}

extension Shell {
  /// The owner of a frame. Each frame that is not free has one.
  func owner(of frame: FrameDescription) -> NamedOwner {
    if let stated = frame.statedOwner, frame.busyWord != .captured {
      var owner = NamedOwner(site: stated.site)
      if stated.isStated { owner.name = stated.purpose }
      if let number = stated.type { owner.type = memory.kmem.type(at: number)?.name }
      return owner
    }
    var owner = NamedOwner()
    switch frame.role {
    case .slab:
      let address = memory.machine.directMap.virtualAddress(of: frame.frame.address)
      owner.name = "Kmem"
      if let object = memory.kmem.whatIs(address) { owner.name = "Kmem, slab of \(object.cache)" }
    case .pageable:
      owner.name = page(in: frame)?.name ?? "Paging, a page on its way"
    case .zspage:
      owner.name = "Zsmalloc"
      if let zspage = memory.compressed.store.whatIs(frame.frame.address) {
        owner.name = "Zsmalloc, zspage \(UInt64(zspage.number))"
      }
    default:
      if let name = frame.ownerByRole { owner.name = Line(name) }
    }
    return owner
  }

  /// Prints the owner of a frame that the facts before it have not named.
  func printOwner(_ owner: NamedOwner) {
    guard let name = owner.name else { return }
    var facts = Line()
    if let type = owner.type { facts.append(line: "type \(type)") }
    if owner.site != .unknown {
      if facts.count > 0 { facts.append(", ") }
      facts.append(line: "allocated by \(place(owner.site))")
    }
    fact("owner", name, facts)
  }
}
