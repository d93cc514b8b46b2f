package diagnose

import (
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
)

// scaledBy is what an autoscaler scales.
func scaledBy(h *autoscalingv2.HorizontalPodAutoscaler) Ref {
	kind := strings.ToLower(h.Spec.ScaleTargetRef.Kind)
	if strings.HasPrefix(h.Spec.ScaleTargetRef.APIVersion, argoGroup+"/") {
		kind += "." + argoGroup
	}
	return Ref{kind, h.Namespace, h.Spec.ScaleTargetRef.Name}
}

// checkAutoscalers is about autoscalers that do nothing.
func checkAutoscalers(s *Snapshot) (out []Finding) {
	for i := range s.Autoscalers {
		h := &s.Autoscalers[i]
		target := scaledBy(h)
		for _, c := range h.Status.Conditions {
			bad := c.Status == corev1.ConditionFalse && (c.Type == autoscalingv2.ScalingActive || c.Type == autoscalingv2.AbleToScale)
			if !bad || c.Reason == "ScalingDisabled" {
				continue
			}
			f := Finding{ID: "autoscaler-inactive", Severity: Warning, Direction: Autoscaling, Object: refOf("horizontalpodautoscaler", h), Owner: s.owner(h)}
			f.Why = fmt.Sprintf("%s keeps the replicas it has, whatever comes", target)
			f.Summary = "it does not scale: " + firstLine(c.Message)
			f.Next = []string{fmt.Sprintf("kubectl describe hpa %s%s", h.Name, f.Object.in())}
			f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
			f.Events = told(s.eventsOf("horizontalpodautoscaler", h))
			switch lacking := s.withoutRequest(h, target); {
			case c.Reason == "FailedGetScale" && strings.Contains(c.Message, "not found"):
				f.ID, f.Severity = "autoscaler-target-absent", Problem
				f.Summary = fmt.Sprintf("%s, which it is to scale, does not exist in %s", target, h.Namespace)
				f.Next = []string{"name one that does in scaleTargetRef: " + f.edit()}
			case lacking != "":
				f.ID = "autoscaler-no-request"
				f.Summary = fmt.Sprintf("it goes by a share of the %s that is asked for, and %s asks for none", lacking, target)
				f.Next = []string{fmt.Sprintf("set resources.requests.%s in all containers: kubectl edit %s%s", lacking, strings.Replace(target.String(), "/", " ", 1), target.in())}
			case strings.Contains(c.Message, "the server could not find the requested resource") || strings.Contains(c.Message, "the server is currently unable to handle the request"):
				f.ID = "autoscaler-no-metrics"
				f.Summary = "the cluster has no metrics for it: its metrics API is not there or does not answer"
				f.Next = []string{"kubectl get apiservices | grep metrics: metrics-server, or an adapter, has to be there and Available"}
			case strings.Contains(c.Message, "no metrics returned") || strings.Contains(c.Message, "did not receive metrics"):
				f.ID = "autoscaler-no-metrics"
				f.Summary = "there are no metrics of its pods"
				f.Next = []string{"kubectl top pods" + f.Object.in() + ": pods that have just started have none for a minute"}
				f.because = append([]Ref{target}, s.made[target]...)
			}
			out = append(out, f)
			break
		}
	}
	return out
}

// withoutRequest is the resource that an autoscaler takes a share of, and of which a container of its target asks for nothing;
// "" if there is none, or the target is not known.
func (s *Snapshot) withoutRequest(h *autoscalingv2.HorizontalPodAutoscaler, target Ref) corev1.ResourceName {
	var template *corev1.PodSpec
	for i := range s.Deployments {
		if refOf("deployment", &s.Deployments[i]) == target {
			template = &s.Deployments[i].Spec.Template.Spec
		}
	}
	for i := range s.StatefulSets {
		if refOf("statefulset", &s.StatefulSets[i]) == target {
			template = &s.StatefulSets[i].Spec.Template.Spec
		}
	}
	if template == nil {
		return ""
	}
	for _, m := range h.Spec.Metrics {
		if m.Resource == nil || m.Resource.Target.Type != autoscalingv2.UtilizationMetricType {
			continue
		}
		for _, c := range template.Containers {
			_, requested := c.Resources.Requests[m.Resource.Name]
			_, limited := c.Resources.Limits[m.Resource.Name]
			if !requested && !limited {
				return m.Resource.Name
			}
		}
	}
	return ""
}
