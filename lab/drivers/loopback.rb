# vagrant-libvirt asks libvirt for a machine's address; ours have a user-mode network and answer on 127.0.0.1.
# `get_ipaddress` is no public interface, so this stands for the version it was written against.
unless VagrantPlugins::ProviderLibvirt.respond_to?(:version)
  require "vagrant-libvirt/version"
end
require "vagrant-libvirt/driver"

version = VagrantPlugins::ProviderLibvirt.respond_to?(:get_version) ? VagrantPlugins::ProviderLibvirt.get_version : VagrantPlugins::ProviderLibvirt::VERSION
unless version.to_s.start_with?("0.11", "0.12")
  warn "lab: vagrant-libvirt #{version} is unknown to the lab; if no machine is reached, use --driver qemu"
end

module LabLoopback
  def get_ipaddress(*arguments)
    config = @machine.provider_config
    config.mgmt_attach ? super : "127.0.0.1"
  end
end
VagrantPlugins::ProviderLibvirt::Driver.prepend(LabLoopback)
